"""Requests made from the server's own description: no answer is a failure of the server, and none is undocumented."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from chatterbox_vllm.engine.request import SpeechRequest
from tests.fake_server import FakeEngine, Running, running

# Of each operation; there are two dozen, and they are tried twice.
CASES = 60
PATIENT = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


class Brief(FakeEngine):
    """Says little, whatever the text."""

    def wave(self, request: SpeechRequest) -> torch.Tensor:
        return torch.zeros(2_400)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("voices"), Brief) as found:
        yield found


@pytest.fixture(scope="module")
def description(server: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_answer_is_a_failure_or_a_surprise(description: schemathesis.BaseSchema) -> None:
    """A thousand requests: such as fit the description, and such as do not."""
    tried = 0

    def try_out(case: schemathesis.Case) -> None:
        nonlocal tried
        tried += 1
        case.call_and_validate(checks=CHECKS, timeout=10)

    for mode in GenerationMode:
        for result in description.get_all_operations():
            cases = result.ok().as_strategy(generation_mode=mode)
            try:
                PATIENT(given(case=cases)(try_out))()
            except Unsatisfiable:  # what has no fields cannot be wrong
                assert mode is GenerationMode.NEGATIVE
    assert tried > 1_000


def test_the_description_holds_every_operation(description: schemathesis.BaseSchema) -> None:
    paths = description.raw_schema["paths"]
    assert sum(len(operations) for operations in paths.values()) > 20
    assert all("422" not in operation["responses"] for path in paths.values() for operation in path.values())
    assert {"/v1/audio/speech", "/v1/audio/voices", "/health", "/tts"} <= set(paths)
