"""Several models in one process: used in turns and at once, closed in every order."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import AsyncChatterbox, ChatterboxTTS, ConfigError, SpeechParameters, SpeechRequest
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import DeviceError, GenerationError
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.vllm import lifetime, stage

TEXT = "Three of us live in one house."
KINDS: dict[str, Callable[[Path], ChatterboxTTS]] = {
    "one": lambda babbler: ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=2, watermark=False),
    "two": lambda babbler: ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=1, watermark=False),
    "quantized": lambda babbler: ChatterboxTTS.from_local(
        babbler, "cpu", max_batch_size=2, watermark=False, use_quantization=True, quantization_method="bnb-8bit"
    ),
}


@pytest.fixture(scope="module")
def alone(babbler: Path) -> dict[str, torch.Tensor]:
    """What each model says where it has the process for itself."""
    said = {}
    for name, load in KINDS.items():
        with load(babbler) as tts:
            said[name] = tts.generate(TEXT, seed=1)
    return said


# Each is the first once, and the last once; all six orders hold.
@pytest.mark.parametrize("order", list(itertools.permutations(KINDS))[::2], ids="-".join)
def test_closing_any_leaves_the_others_speaking(
    babbler: Path, alone: dict[str, torch.Tensor], order: tuple[str, ...]
) -> None:
    pytest.importorskip("bitsandbytes")
    open_models = {name: KINDS[name](babbler) for name in KINDS}
    try:
        for name in order:
            for other, tts in open_models.items():
                assert torch.equal(tts.generate(TEXT, seed=1), alone[other]), f"{other}, before {name} was closed"
            open_models.pop(name).shutdown()
    finally:
        for tts in open_models.values():
            tts.shutdown()


def test_at_once(babbler: Path, alone: dict[str, torch.Tensor]) -> None:
    async def speak(tts: ChatterboxTTS, times: int) -> list[torch.Tensor]:
        async with AsyncChatterbox(tts) as engine:
            request = SpeechRequest(TEXT, tts.voice, SpeechParameters(seed=1))
            results = await asyncio.gather(*(engine.speak(request) for _ in range(times)))
        return [result.audio for result in results]

    async def both() -> list[list[torch.Tensor]]:
        return await asyncio.gather(*(speak(tts, 4) for tts in models))

    with KINDS["one"](babbler) as first, KINDS["two"](babbler) as second:
        models = [first, second]
        said = asyncio.run(both())
    for name, waves in zip(("one", "two"), said, strict=True):
        assert all(torch.equal(wave, alone[name][0]) for wave in waves)


_OPEN_AND_CLOSE_TWO = """
import gc, os, sys
from pathlib import Path
from chatterbox_vllm import ChatterboxTTS
before = set(os.environ)
model = Path(sys.argv[1])
gc.disable()  # so that who looks for garbage has asked for it
frozen = []
gc.callbacks.append(lambda phase, info: frozen.append(gc.get_freeze_count()) if phase == "start" else None)
with ChatterboxTTS.from_local(model, "cpu", watermark=False):
    assert frozen and min(frozen) > 100_000, frozen  # among what is imported, nobody looked
    with ChatterboxTTS.from_local(model, "cpu", watermark=False):
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
assert gc.get_freeze_count() == 0
ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_LOGGING_LEVEL", "TRITON_F32_DEFAULT")
left = [name for name in ours if name in os.environ and name not in before]
assert not left, left
"""


def test_what_the_models_of_a_process_change_is_put_back(babbler: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", _OPEN_AND_CLOSE_TWO, str(babbler)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_shutting_down_under_an_open_engine_closes_it(babbler: Path) -> None:
    async def main() -> None:
        tts = KINDS["one"](babbler)
        engine = AsyncChatterbox(tts)
        task = asyncio.create_task(engine.speak(SpeechRequest(TEXT * 30, tts.voice, SpeechParameters(seed=1))))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(tts.shutdown)
        assert type((await task).error).__name__ == "AbortedError"
        engine.close()  # harmless

    asyncio.run(main())


def test_an_iterator_of_a_model_that_was_shut_down_says_so(babbler: Path) -> None:
    tts = KINDS["one"](babbler)
    results = tts.generate_iter([TEXT, TEXT, TEXT], seed=1)
    next(results)
    tts.shutdown()
    with pytest.raises(ConfigError, match="shut down"):
        next(results)


def test_an_engine_whose_first_step_fails_makes_room_for_another(
    babbler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: object) -> None:
        raise GenerationError("the T3 engine failed") from torch.OutOfMemoryError("out of memory")

    ended: list[str] = []
    engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: ended.append("engine")))
    monkeypatch.setattr(stage, "new_stream", lambda *_: None)
    monkeypatch.setattr(stage.T3Stage, "_start", lambda *_: engine)
    monkeypatch.setattr(stage.T3Stage, "_speak_once", no_room)
    config = config_of(babbler)
    weights = Weights(babbler / family_of(config.family).t3)
    with pytest.raises(DeviceError, match="cannot start: out of memory; here it is max_model_len"):
        stage.T3Stage(config.t3, weights, T3Options(torch.float32), torch.device("cuda", 0))
    assert ended == ["engine"]
    lifetime.enter(torch.device("cpu"))  # refused beside an engine on another device
    lifetime.leave(torch.device("cpu"))
