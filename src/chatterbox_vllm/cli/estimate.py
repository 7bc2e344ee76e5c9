"""`chatterbox-vllm estimate`: how much memory a model will take, computed from its files' headers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatterbox_vllm.cli.arguments import Strategy, from_settings
from chatterbox_vllm.cli.options import JsonOption
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, check_writable, write_json
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig

if TYPE_CHECKING:
    from chatterbox_vllm.setup.tiers import Tier


@from_settings()
def estimate(
    *,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="as --model of say", show_default="the default family")
    ] = None,
    tier: Annotated[str, typer.Option(metavar="GB", help="4, 6, 8, 12, 24, 48, auto or all")] = "all",
    strategies: Annotated[
        bool, typer.Option("--strategies", help="compare the strategies, all else as in the tier")
    ] = False,
    quantization_strategy: Annotated[
        Strategy | None,
        typer.Option(
            "--quantization-strategy", "--quantization", help="instead of the tier's", show_default="the tier's"
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Memory of a process that serves MODEL on a CUDA device in half precision. Loads nothing."""
    if strategies and quantization_strategy is not None:
        raise ConfigError(
            "--strategies compares them all and --quantization-strategy names one: leave one of the two out"
        )
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli.tables import memory_table, show
    from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
    from chatterbox_vllm.setup.loading import in_force
    from chatterbox_vllm.setup.models import model_headers
    from chatterbox_vllm.setup.tiers import TIERS

    chosen = TIERS if tier == "all" else (_tier(tier),)
    headers = model_headers(model)
    directory, estimator = headers.where, QuantizationMemoryEstimator(headers)
    stored = estimator.config.quantized
    if strategies and stored.parts:
        raise ConfigError(f"{directory} is quantized already and fits one strategy at most: leave --strategies out")
    found: dict[str, tuple[Any, int]] = {}
    for each in chosen:
        wanted = each.plan.quantization.beside(stored)
        if quantization_strategy is not None:
            wanted = QuantizationConfig.from_strategy(quantization_strategy)
        plan = replace(each.plan, quantization=in_force(wanted, directory, estimator.config))
        if strategies:
            for strategy, estimated in estimator.compare_strategies(plan).items():
                found[f"{each.gb} GB, {strategy}"] = (estimated, each.budget)
        else:
            found[f"{each.gb} GB, {plan.quantization}"] = (estimator.estimate(plan), each.budget)
    if json is not None:
        write_json(json, {name: {**e.as_dict(), "budget": budget} for name, (e, budget) in found.items()})
    if json != STANDARD_OUTPUT:
        show(*(memory_table(name, estimated, budget) for name, (estimated, budget) in found.items()))


def _tier(name: str) -> Tier:
    from chatterbox_vllm.setup.tiers import tier_named

    if name != AUTO:
        return tier_named(name)
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.planning import automatic_tier

    return automatic_tier(resolve_device(AUTO))
