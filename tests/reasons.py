"""Why a test may be skipped. Where `CI=true` is set, a skip for any other reason is a failure."""

from __future__ import annotations

NO_TOKENIZER = "the published tokenizer.json is not at hand"
NO_CLIP = "the recording that the oracle cloned is not at hand"

ACCEPTED = (
    NO_TOKENIZER,
    NO_CLIP,
    "Triton is not installed",  # it is where there is a GPU
    "root may read everything",
)
