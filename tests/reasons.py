"""Why a test may be skipped. Where `CI=true` is set, a skip for any other reason is a failure."""

from __future__ import annotations

import os

import pytest

NO_TOKENIZER = "the published tokenizer.json is not at hand"
NO_TURBO_TOKENIZER = "the published vocab.json, merges.txt and added_tokens.json are not at hand"
NO_CLIP = "the recording that the oracle cloned is not at hand"
NO_CHROMIUM = "there is no Chromium: install one (docs/serving.md says how), or name it in CHATTERBOX_CHROMIUM"
NO_TRITON = "Triton is not installed"  # it is where there is a GPU

ACCEPTED = (
    NO_TOKENIZER,
    NO_TURBO_TOKENIZER,
    NO_CLIP,
    NO_TRITON,
    NO_CHROMIUM,
    "could not import 'pesq'",  # which takes a C compiler to install
    "root may read everything",
)


def refuse_unnamed_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a failure of a skip, of a test or of a whole module, that nobody has named; outside CI leave it."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(accepted in reason for accepted in ACCEPTED):
        report.outcome = "failed"
        report.longrepr = f"{reason}\nCI=true is set, and tests/reasons.py does not name this reason to skip a test"
