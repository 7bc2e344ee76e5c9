"""Flash through every door, with a small synthetic checkpoint: Python, command line, server, quantized."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import soundfile
import torch

from chatterbox_vllm import ChatterboxTTS, ConfigError, SpeechParameters, SpeechRequest
from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.cli import main
from chatterbox_vllm.families.babble_flash import BABBLE_FLASH_CONFIG
from chatterbox_vllm.families.flash import FLASH
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.quantize import quantize_model
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.blocks.stage import BlockStage
from chatterbox_vllm.text.normalize import normalize_spelled_out

from .test_serve_command import served

TEXT = "Hello there. This is a test; it goes on, and ends."


@pytest.fixture(scope="module")
def flash(flash_babbler: Path) -> Iterator[ChatterboxTTS]:
    with ChatterboxTTS.from_local(flash_babbler, "cpu", watermark=False) as tts:
        yield tts


def test_published_dimensions_are_the_english_models_and_a_mask() -> None:
    layout = Path(__file__).parent / "parity" / "oracle" / "layouts" / "t3_cfg.safetensors.json"
    english = {key: tuple(kind[0]) for key, kind in json.loads(layout.read_text())["tensors"].items()}
    ours = backbone_of(FLASH.config.t3).published_shapes(FLASH.config.t3)
    differing = {key for key, shape in ours.items() if english[key] != shape}
    assert differing == {"speech_emb.weight"} and ours["speech_emb.weight"] == (8195, 1024)
    assert set(english) - set(ours) == {"tfmr.embed_tokens.weight", "text_head.weight"}
    assert FLASH.config.voice_kind is None  # voices of the first Chatterbox are Flash's, too


def test_it_speaks_alone_in_a_batch_and_as_a_stream(flash: ChatterboxTTS) -> None:
    assert isinstance(flash.t3_stage, BlockStage)
    texts = [TEXT, "Two.", "Three of us are here, and one more.", "Four, five, six."]
    requests = [SpeechRequest(text, flash.voice, SpeechParameters(seed=5)) for text in texts]
    together = {result.index: result for result in flash.run(requests)}
    for index, request in enumerate(requests):
        (alone,) = flash.run([request])
        assert alone.error is None and alone.finish_reason == "stop" and alone.retries == 0
        assert alone.speech_tokens == together[index].speech_tokens
        assert alone.samples == 960 * len(alone.speech_tokens)
        *chunks, result = flash.stream(request)
        assert result.speech_tokens == alone.speech_tokens
        assert result.samples == sum(len(chunk.audio) for chunk in chunks) == alone.samples
        assert alone.audio.abs().max() > 0.01
    assert flash.t3_stage.kv_blocks_in_use == 0


def test_a_stream_begins_before_t3_has_finished(flash: ChatterboxTTS) -> None:
    long = "A good deal longer than that, I should say, and long enough for some chunks, and then it goes on."
    stream = flash.generate_stream(long, seed=1)
    next(stream)
    assert flash.t3_stage.unfinished
    stream.close()
    assert not flash.t3_stage.unfinished and flash.t3_stage.kv_blocks_in_use == 0


def test_guidance_and_temperature_are_its_own(flash: ChatterboxTTS) -> None:
    given = {"seed": 1, "max_tokens": 40}
    usual = flash.generate("Hi there.", **given)
    assert torch.equal(usual, flash.generate("Hi there.", cfg_weight=1.0, temperature=0.6, **given))
    for other in ({"cfg_weight": 0.0}, {"temperature": 1.0}, {"seed": 2}):
        changed = flash.generate("Hi there.", **given | other)
        assert changed.shape != usual.shape or not torch.equal(changed, usual)


def test_what_the_model_lacks_is_refused_by_name(flash: ChatterboxTTS) -> None:
    for name, value in (("min_p", 0.1), ("top_p", 0.9), ("top_k", 5), ("repetition_penalty", 1.2)):
        with pytest.raises(ConfigError, match=f"the flash model has no {name}; leave it out"):
            flash.generate("Hi.", **{name: value})
        assert name not in flash.defaults
    with pytest.raises(ConfigError, match="takes neither draws nor tokens from outside"):
        request = SpeechRequest("Hi.", flash.voice, SpeechParameters(max_tokens=30), uniforms=[0.5] * 30)
        raise next(flash.run([request])).error


def test_speech_is_limited_by_the_text_where_nobody_says_otherwise(flash: ChatterboxTTS) -> None:
    prompts = flash._engine.scheduler.preparation.prompts
    for text, most in (("Hi.", 300), ("word " * 50, 6 * (50 * 5 - 1 + 2))):
        (piece,) = prompts.script(SpeechRequest(text, flash.voice)).pieces
        assert piece.values.max_tokens == most
    (piece,) = prompts.script(SpeechRequest("Hi.", flash.voice, SpeechParameters(max_tokens=500))).pieces
    assert piece.values.max_tokens == 500


def test_without_a_voice_it_says_what_to_do(flash_babbler: Path, tmp_path: Path) -> None:
    for file in flash_babbler.iterdir():
        if file.name != FLASH.builtin_voice:
            (tmp_path / file.name).symlink_to(file)
    with (
        ChatterboxTTS.from_local(tmp_path, "cpu", watermark=False) as tts,
        pytest.raises(ConfigError, match="there is no voice: pass audio_prompt_path"),
    ):
        tts.generate("Hi.")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("It  is\n4 – really – well-known.", "It is four, really, well known."),
        ("a 3-year-old’s “ﬁne” number 5-7", 'a three year old\'s "fine" number five - seven'),
        ("Stop -", "Stop -"),
        ("from 5 - 7, or -3 -- no", "from five - seven, or -three, no"),
        ("wait- what -now", "wait, what, now"),
    ],
)
def test_text_keeps_its_case_and_loses_its_dashes_and_digits(text: str, normal: str) -> None:
    assert normalize_spelled_out(text) == normal


@pytest.mark.parametrize("method", ["bnb-4bit", "bnb-8bit"])
def test_quantized_while_loading_and_on_disk_is_the_same(flash_babbler: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("bitsandbytes")
    quantize_model(flash_babbler, tmp_path / "made", QuantizationConfig(method))
    said = []
    loading = {"use_quantization": True, "quantization_method": method}
    for directory, options in ((flash_babbler, loading), (tmp_path / "made", {})):
        with ChatterboxTTS.from_local(directory, "cpu", watermark=False, **options) as tts:
            info = tts.get_quantization_info()["t3"]
            assert info["method"] == method and info["quantized_layers"] == 4 * BABBLE_FLASH_CONFIG.t3.num_layers
            assert info["linear_layers"] == info["quantized_layers"] + 1  # the head
            said.append(tts.generate("Hi there.", seed=1, max_tokens=30))
    assert torch.equal(*said)


def test_methods_of_vllms_kernels_are_refused_before_any_work(flash_babbler: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="awq cannot be had of a model that fills in blocks: take bnb-4bit"):
        quantize_model(flash_babbler, tmp_path / "made", QuantizationConfig("awq"))
    with pytest.raises(ConfigError, match="deterministic=True is not to be had"):
        ChatterboxTTS.from_local(flash_babbler, "cpu", deterministic=True)


def test_the_command_line_speaks_it(
    flash_babbler: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model, out = ["--model", str(flash_babbler)], tmp_path / "out.wav"
    assert main(["say", TEXT, "-o", str(out), "--voice", str(clip), "--cfg-weight", "0.5", "--seed", "1", *model]) == 0
    assert soundfile.info(out).duration > 1
    capsys.readouterr()
    assert main(["say", "Hi.", "-o", str(out), "--min-p", "0.5", *model]) == 2
    assert "the flash model has no --min-p" in capsys.readouterr().err
    assert main(["evaluate", "--baseline", str(flash_babbler), "--candidate", str(flash_babbler)]) == 2
    assert "forces tokens on T3" in capsys.readouterr().err


def test_a_server_speaks_it(flash_babbler: Path, tmp_path: Path) -> None:
    body = {"input": TEXT, "response_format": "wav", "cfg_weight": 0.8, "seed": 1}
    with served(tmp_path, flash_babbler) as (_, url):
        answer = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=120)
        assert answer.status_code == 200 and decode_audio(answer.content)[0].size > 24_000
        refused = httpx.post(f"{url}/v1/audio/speech", json=body | {"min_p": 0.1})
        assert refused.status_code == 400 and "has no min_p" in refused.text
