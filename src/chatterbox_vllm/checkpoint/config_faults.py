"""What is wrong with a `config.json`, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatterbox_vllm.checkpoint.config import T3Config

AGAIN = "mend it, or make the directory again"

# Pydantic's kinds of faults in our words; it words the others well enough.
_FAULTS = {
    "unexpected_keyword_argument": "there is no such field",
    "missing": "the field is missing",
    "dataclass_type": "should be an object",
}
_STREAMS = {"llama": 2, "gpt2": 1}  # the prompts of each are so made


def described(fault: Mapping[str, Any]) -> str:
    """One fault of a file as pydantic tells it: its field, what is wrong, and what stands there."""
    said = _FAULTS.get(fault["type"], fault["msg"].removeprefix("Input "))
    if fault["type"] == "greater_than_equal" and fault["ctx"]["ge"] == 0:
        said = "must not be negative"
    return f"{': '.join(map(str, fault['loc']))}: {said}, found {fault['input']!r:.100}; {AGAIN}"


def contradictions(t3: T3Config) -> Iterator[str]:
    """What a T3 cannot be, though each of its fields can."""
    streams = _STREAMS[t3.backbone]
    if t3.guidance_streams != streams:
        yield f"guidance_streams must be {streams} for the backbone {t3.backbone!r}, found {t3.guidance_streams}"
    for kind, vocabulary in (("text", t3.text_vocab_size), ("speech", t3.speech_vocab_size)):
        for name in (f"start_{kind}_token", f"stop_{kind}_token"):
            if (token := getattr(t3, name)) >= vocabulary:
                yield f"{name} must be below {kind}_vocab_size, which is {vocabulary}, found {token}"
