"""Why a test may be skipped. Where `CI=true` is set, a skip for any other reason is a failure."""

from __future__ import annotations

NO_TOKENIZER = "the published tokenizer.json is not at hand"
NO_CLIP = "the recording that the oracle cloned is not at hand"
NO_TRITON = "Triton is not installed"  # it is where there is a GPU

ACCEPTED = (
    NO_TOKENIZER,
    NO_CLIP,
    NO_TRITON,
    "root may read everything",
)
