"""`chatterbox-vllm estimate`: how much memory a model will take, computed from its files' headers."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import AUTO, STRATEGIES, QuantizationConfig

if TYPE_CHECKING:
    from chatterbox_vllm.setup.tiers import Tier


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_estimate)
    parser.description = "Memory of a process that serves MODEL on a CUDA device in half precision. Loads nothing."
    parser.add_argument("model", metavar="MODEL", nargs="?", default="english", help="as in say --model")
    parser.add_argument("--tier", metavar="GB", default="all", help="4, 6, 8, 12, 24, 48, auto or all (default: all)")
    parser.add_argument("--strategies", action="store_true", help="compare the strategies, all else as in the tier")
    parser.add_argument("--quantization", choices=tuple(STRATEGIES), help="instead of the tier's")
    parser.add_argument("--json", action="store_true", help="as JSON, in bytes")


def _estimate(options: argparse.Namespace) -> int:
    from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator, render
    from chatterbox_vllm.setup.loading import in_force
    from chatterbox_vllm.setup.models import model_headers
    from chatterbox_vllm.setup.tiers import TIERS

    chosen = TIERS if options.tier == "all" else (_tier(options.tier),)
    model = model_headers(options.model)
    directory, estimator = model.where, QuantizationMemoryEstimator(model)
    stored = estimator.config.quantized
    if options.strategies and stored.parts:
        raise ConfigError(f"{directory} is quantized already and fits one strategy at most: leave --strategies out")
    if options.strategies and options.quantization is not None:
        raise ConfigError("--strategies compares them all and --quantization names one: leave one of the two out")
    found: dict[str, tuple[Any, int]] = {}
    for tier in chosen:
        wanted = tier.plan.quantization.beside(stored)
        if options.quantization is not None:
            wanted = QuantizationConfig.from_strategy(options.quantization)
        plan = replace(tier.plan, quantization=in_force(wanted, directory, estimator.config))
        if options.strategies:
            for strategy, estimate in estimator.compare_strategies(plan).items():
                found[f"{tier.gb} GB, {strategy}"] = (estimate, tier.budget)
        else:
            found[f"{tier.gb} GB, {plan.quantization}"] = (estimator.estimate(plan), tier.budget)
    if options.json:
        print(json.dumps({name: {**e.as_dict(), "budget": budget} for name, (e, budget) in found.items()}, indent=1))
    else:
        print("\n".join(render(name, estimate, budget) for name, (estimate, budget) in found.items()))
    return 0


def _tier(name: str) -> Tier:
    from chatterbox_vllm.setup.tiers import tier_named

    if name != AUTO:
        return tier_named(name)
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.planning import automatic_tier

    return automatic_tier(resolve_device(AUTO))
