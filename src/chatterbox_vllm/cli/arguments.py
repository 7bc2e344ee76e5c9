"""Options of commands, made from the table of all settings, and what every command has in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from chatterbox_vllm.cli.verbosity import shown
from chatterbox_vllm.cli.wording import Options, options_named
from chatterbox_vllm.settings import GROUPS, Setting

# Keywords that were given, and their values.
Keywords = dict[str, Any]
DType = Literal["auto", "float32", "float16", "bfloat16"]
Strategy = Literal["conservative", "mixed", "aggressive", "nf4", "int8", "auto"]

# Of settings whose default does not tell.
_TYPES: dict[str, Any] = {
    "cors_origins": list[str],
    "cuda_graphs": bool,
    "diffusion_steps": int,
    "dtype": DType,
    "gpu_memory_utilization": float,
    "idle_seconds": float,
    "models": list[str],
    "models_memory_gb": float,
    "kv_cache_bytes": int,
    "max_batch_size": int,
    "max_model_len": int,
    "max_requests": int,
    "multi_step": int,
    "norm_loudness": bool,
    "pauses": list[str],
    "quantization_strategy": Strategy,
    "s3gen_dtype": DType,
    "seed": int,
    "stream_prompt_seconds": float,
    "use_quantization": bool,
    "voice_aliases": list[str],
}


def _models() -> tuple[str, ...]:
    """The names of models, read when a shell asks for them: it takes a second."""
    from chatterbox_vllm.families.registry import FAMILIES
    from chatterbox_vllm.setup.models import SMALL

    return (*FAMILIES, SMALL)


_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "NAME"}
_METAVARS_OF = {
    "pauses": "KIND=SECONDS",
    "cors_origins": "ORIGIN",
    "voice_aliases": "ALIAS=VOICE",
    "models": "[NAME=]MODEL",
}
# What a shell completes, where a setting takes other values as well.
_COMPLETED: dict[str, Sequence[str] | Callable[[], Sequence[str]]] = {
    "device": ("auto", "cpu", "cuda"),
    "model": _models,
    "models": _models,
    "pauses": ("clause=", "sentence=", "paragraph=", "heading=", "scene="),
    "quantization_method": ("bnb-4bit", "bnb-8bit", "awq", "fp8"),
    "quantize_s3gen": ("bnb-4bit", "bnb-8bit", "true"),
    "quantize_voice_encoder": ("bnb-4bit", "bnb-8bit", "true"),
    "tier": ("auto", "4", "6", "8", "12", "24", "48"),
}
# Spellings of earlier versions.
_SHORT = {"diffusion_steps": "--steps", "quantization_strategy": "--quantization"}
# Without it, there is no strategy; in Python it is the keyword of a method of its own, which has a default.
_SHOWN = {"quantization_strategy": "none: the options above and the tier decide"}


def setting_type(setting: Setting) -> Any:
    """The type of a setting's values."""
    return _TYPES.get(setting.keyword, str if setting.default is None else type(setting.default))


def from_settings(*groups: tuple[Setting, ...], name_options: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Give a command an option for each setting of the groups; what was given reaches its parameter `given`.

    All commands get --verbose and --quiet too. A parameter `quiet` of the command's own learns of the latter.

    Args:
        name_options: whether errors name the command's options where they name keywords.
    """
    settings = [s for group in groups for s in group if s.option]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function, eval_str=True).parameters
        wants_quiet, wants_given = "quiet" in own, "given" in own
        parameters = [p for name, p in own.items() if name not in ("quiet", "given")]
        parameters += [*map(_parameter, settings), *_VERBOSITY]

        @functools.wraps(function)
        def command(**values: Any) -> Any:
            verbose, quiet = values.pop("verbose"), values.pop("quiet")
            chosen = {s.keyword: values.pop(s.keyword) for s in settings}
            if wants_given:
                values["given"] = {name: value for name, value in chosen.items() if value is not None}
            if wants_quiet:
                values["quiet"] = quiet
            with shown(verbose, quiet), options_named(_options(parameters) if name_options else {}):
                return function(**values)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(setting: Setting) -> inspect.Parameter:
    kind = setting_type(setting)
    meaning = setting.meaning.replace("[", r"\[")  # not Rich's markup
    shown = _SHOWN.get(setting.keyword, setting.shown_default)
    names = [name for name in (setting.option, _SHORT.get(setting.keyword)) if name is not None]
    option = typer.Option(
        *names,
        # The default is the library's to take, so that an environment variable or a tier can stand before it.
        help=rf"{meaning} [dim]\[default: {shown}][/dim]",
        show_default=False,
        metavar=_METAVARS_OF.get(setting.keyword) or _METAVARS.get(kind),
        autocompletion=_completion(_COMPLETED[setting.keyword]) if setting.keyword in _COMPLETED else None,
        rich_help_panel=next(title for title, group in GROUPS.items() if setting in group),
    )
    return _keyword(setting.keyword, Annotated[kind | None, option], None)


def _completion(values: Sequence[str] | Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [value for value in (values() if callable(values) else values) if value.startswith(incomplete)]

    return complete


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_VERBOSITY = (
    _keyword(
        "verbose",
        Annotated[
            int, typer.Option("--verbose", "-v", count=True, show_default=False, help="say more; -vv everything")
        ],
        0,
    ),
    _keyword(
        "quiet",
        Annotated[
            bool, typer.Option("--quiet", "-q", help="only errors and what was asked for: no progress, no summary")
        ],
        False,
    ),
)


def _options(parameters: Sequence[inspect.Parameter]) -> Options:
    """The option that stands for each parameter: its first spelling."""
    found = {}
    for parameter in parameters:
        info = next((m for m in getattr(parameter.annotation, "__metadata__", ()) if hasattr(m, "param_decls")), None)
        names = [info.default, *(info.param_decls or ())] if info is not None else []
        long = [name for name in names if isinstance(name, str) and name.startswith("--")]
        found[parameter.name] = long[0] if long else f"--{parameter.name.replace('_', '-')}"
    return found


class Command(TyperCommand):
    """A command that takes `--option A B` for `--option A --option B`, where it has no argument to mistake B for.

    `--json` without a file is `--json -`, as it was in earlier versions.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        arguments = any(p.param_type_name == "argument" for p in self.params)
        many = set() if arguments else {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        json = any("--json" in p.opts for p in self.params)
        words: list[str] = []
        option, filled = "", True  # the last option that may be repeated, and whether it has a value
        for i, word in enumerate(args):
            if word[:1] == "-" and len(word) > 1:
                option, filled = (word if word in many else ""), False
            elif option and filled:
                words.append(option)
            else:
                filled = True
            words.append(word)
            following = args[i + 1] if i + 1 < len(args) else "--"
            if json and word == "--json" and following[:1] == "-" and len(following) > 1:
                words.append("-")
        return super().parse_args(ctx, words)
