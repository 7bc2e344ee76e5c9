"""In continuous integration a skip is a failure unless its reason is named."""

from __future__ import annotations

import pytest

from .reasons import ACCEPTED, refuse_unnamed_skip


def skipped(reason: str) -> pytest.CollectReport:
    return pytest.CollectReport("tests/test_x.py", "skipped", ("tests/test_x.py", 3, f"Skipped: {reason}"), [])


@pytest.mark.parametrize("ci", ["true", None])
def test_skips(ci: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    named, unnamed = skipped(ACCEPTED[0]), skipped("could not import 'vllm'")
    for report in (named, unnamed):
        refuse_unnamed_skip(report)
    assert named.skipped
    assert unnamed.failed == (ci == "true")
    if ci is not None:
        assert "'vllm'" in unnamed.longrepr and "tests/reasons.py" in unnamed.longrepr
