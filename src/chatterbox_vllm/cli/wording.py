"""Errors of a command in its user's words: an option stands where a message names Python's keyword."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from chatterbox_vllm.errors import ChatterboxError

# The option by the keyword that it stands for; one that can be switched off is "--on/--off".
Options = Mapping[str, str]
_WORD = r"(?<![\w./'\"-]){}(?![\w/'\"-]|\.\w)"


@contextmanager
def options_named(options: Options) -> Iterator[None]:
    """Within, errors of this package name these options."""
    try:
        yield
    except ChatterboxError as error:
        error.args = (as_typed(str(error), options), *error.args[1:])
        raise


def as_typed(message: str, options: Options) -> str:
    """`max_tokens=5` as `--max-tokens 5`, `cuda_graphs=False` as `--no-cuda-graphs`, `top_p must` as `--top-p must`.

    Keywords of one word are words of English as well: they count only where a value or "must" follows.
    """
    for keyword, option in options.items():
        on, _, off = option.partition("/")
        word = _WORD.format(keyword)
        if off:
            message = re.sub(f"{word}=True", on, message)
            message = re.sub(f"{word}=False", off, message)
        message = re.sub(rf"{word}=(?:'([^']*)'|\"([^\"]*)\"|([\w.]*\w))", rf"{on} \1\2\3", message)
        follows = "" if "_" in keyword else r"(?= must\b)"
        message = re.sub(word + follows, on, message)
    return message
