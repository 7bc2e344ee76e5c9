"""The multilingual model in an engine: languages mixed in a batch, through Python, the command line and the server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from chatterbox_vllm import (
    AsyncChatterbox,
    ChatterboxMultilingualTTS,
    ChatterboxTTS,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
)
from chatterbox_vllm.checkpoint.config import CONFIG_FILE
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cli import main
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families import registry
from chatterbox_vllm.families.babble import MULTILINGUAL_BABBLE_CONFIG
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.multilingual import LANGUAGES, MULTILINGUAL, SINGLE_LANGUAGES
from chatterbox_vllm.families.registry import config_of, multilingual_family
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup import models
from chatterbox_vllm.setup.quantize import quantize_model
from chatterbox_vllm.text.languages.chinese import TABLE

from .fake_server import running

pytest.importorskip("vllm")

GERMAN = "Guten Tag, wie geht es Ihnen heute?"
JAPANESE = "今日は良い天気ですね。"
KOREAN = "안녕하세요, 반갑습니다."
HINDI_PACK = next(family for family in SINGLE_LANGUAGES if family.only_language == "hi")


@pytest.fixture(scope="module")
def tts(multilingual_babbler: Path) -> Iterator[ChatterboxMultilingualTTS]:
    with ChatterboxMultilingualTTS.from_local(multilingual_babbler, "cpu", max_batch_size=4, watermark=False) as model:
        yield model


def spoken(tts: ChatterboxTTS, *requests: SpeechRequest) -> list[SpeechResult]:
    return sorted(tts.run(requests), key=lambda result: result.index)


def request(tts: ChatterboxTTS, text: str, language: str | None, seed: int = 1, **fields: Any) -> SpeechRequest:
    return SpeechRequest(text, tts.voice, SpeechParameters(seed=seed), language=language, **fields)


def test_files_are_pickles(multilingual_babbler: Path) -> None:
    for name in (MULTILINGUAL.s3gen, MULTILINGUAL.voice_encoder):
        assert name.endswith(".pt") and isinstance(torch.load(multilingual_babbler / name, weights_only=True), dict)


def test_languages_mixed_in_a_batch(tts: ChatterboxMultilingualTTS) -> None:
    asked = [
        request(tts, GERMAN, "de"),
        request(tts, JAPANESE, "Japanese", 2),
        request(tts, KOREAN, None, 3),
        request(tts, GERMAN, "en"),
    ]
    together = spoken(tts, *asked)
    assert [result.language for result in together] == ["de", "ja", "ko", "en"]
    for alone, result in zip((spoken(tts, one)[0] for one in asked), together, strict=True):
        assert result.error is None and torch.equal(result.audio, alone.audio)
        assert result.speech_tokens == alone.speech_tokens
        # The audio of the last token is noise, and is not heard.
        assert len(result.audio) == 960 * (len(result.speech_tokens) - 1)
    assert together[0].speech_tokens != together[3].speech_tokens  # the tag alone differs


def test_a_stream_has_as_many_samples(tts: ChatterboxMultilingualTTS) -> None:
    whole = tts.generate(GERMAN, "de", seed=1)
    *chunks, result = tts.generate_stream(GERMAN, language="de", seed=1)
    assert sum(len(chunk.audio) for chunk in chunks) == whole.shape[1] and result.language == "de"


def test_long_texts_are_cut_by_their_language(tts: ChatterboxMultilingualTTS) -> None:
    chinese, german = "河水每天早上带走旧船。" * 14, "Der Fluss trägt am Morgen die alten Boote fort. " * 4
    found = spoken(tts, request(tts, chinese, "zh", prepared_text=True), request(tts, german, "de"))
    assert [(result.error, result.segments) for result in found] == [(None, 2), (None, 1)]


def test_one_request_cannot_hurt_another(tts: ChatterboxMultilingualTTS) -> None:
    bad = [
        request(tts, GERMAN, "xx"),
        request(tts, "Привет, мир!", "de"),
        request(tts, "OK", None),
        request(tts, "สวัสดีตอนเช้า", "de"),
    ]
    *failed, good = spoken(tts, *bad, request(tts, GERMAN, "de"))
    told = ["does not speak 'xx'", "written in Cyrillic", "cannot be told for certain", "written in Thai"]
    for result, words in zip(failed, told, strict=True):
        assert isinstance(result.error, ConfigError) and words in str(result.error) and result.language is None
    assert good.error is None
    for wrong in ({"language": 5}, {"prepared_text": "yes"}):
        with pytest.raises(ConfigError, match="must be"):
            SpeechRequest(GERMAN, tts.voice, **wrong)
    with pytest.raises(ConfigError, match="are one: give either"):
        tts.generate(GERMAN, "de", language="de")


def test_letters_that_the_vocabulary_lacks(tts: ChatterboxMultilingualTTS, caplog: pytest.LogCaptureFixture) -> None:
    (result,) = spoken(tts, request(tts, "Der Ort heißt Đồng, sagt đer Mann.", "de"))
    assert result.error is None
    warned = [record.message for record in caplog.records if "no token for" in record.message]
    assert len(warned) == 1 and "đ (LATIN SMALL LETTER D WITH STROKE);" in warned[0]


def test_the_published_class(tts: ChatterboxMultilingualTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ChatterboxMultilingualTTS.get_supported_languages() == LANGUAGES == tts.languages
    # In the published order of arguments.
    wave = tts.generate(GERMAN, "de", None, 0.7, 0.3, 0.9, 1.3, 0.02, 0.9, seed=3)
    plain = {"exaggeration": 0.7, "cfg_weight": 0.3, "temperature": 0.9, "repetition_penalty": 1.3}
    assert torch.equal(wave, ChatterboxTTS.generate(tts, GERMAN, language="de", min_p=0.02, top_p=0.9, seed=3, **plain))
    asked: list[Any] = []
    for door in (ChatterboxMultilingualTTS, ChatterboxTTS):
        monkeypatch.setattr(door, "from_local", lambda directory, device, **options: asked.append(directory))
    monkeypatch.setattr("chatterbox_vllm.loaded.tts.resolve_model", lambda model, revision: model)
    ChatterboxMultilingualTTS.from_pretrained("cpu")
    ChatterboxMultilingualTTS.from_pretrained("cpu", t3_model="v3")
    ChatterboxTTS.from_pretrained_multilingual("cpu", t3_model="multilingual-hi")
    assert asked == ["multilingual", "multilingual-v3", "multilingual-hi"]
    with pytest.raises(ConfigError, match="t3_model must be v2, v3 or one of"):
        ChatterboxMultilingualTTS.from_pretrained("cpu", t3_model="v9")
    assert multilingual_family("t3_mtl23ls_v3").name == multilingual_family("v3").name == "multilingual-v3"


def test_a_directory_with_several_models(
    multilingual_babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published repository is: the class says which of them is meant."""
    for path in multilingual_babbler.iterdir():
        if path.name != CONFIG_FILE:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ENGLISH.t3).touch()
    asked: list[Path] = []
    monkeypatch.setattr(
        ChatterboxTTS, "from_local", classmethod(lambda cls, directory, device, **options: asked.append(directory))
    )
    ChatterboxMultilingualTTS.from_local(tmp_path, "cpu")
    ChatterboxMultilingualTTS.from_local(multilingual_babbler, "cpu")
    assert config_of(tmp_path) == ENGLISH.config
    assert config_of(asked[0]) == MULTILINGUAL.config and asked[1] == multilingual_babbler
    assert not (asked[0] / ENGLISH.t3).exists() and (asked[0] / MULTILINGUAL.t3).exists()


# The other doors.


def test_say(multilingual_babbler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(multilingual_babbler), "--device", "cpu", "--no-watermark", "--seed", "1"]
    assert main(["say", GERMAN, "-o", str(tmp_path / "a.wav"), "--language", "German", *model]) == 0
    assert soundfile.info(tmp_path / "a.wav").frames > 0
    # Refused before the model loads.
    for words, told in ((["--language", "xx"], "does not speak 'xx'"), (["--language", "el"], "written in Latin")):
        capsys.readouterr()
        text = GERMAN if "xx" in words else "Привет, мир, как дела?"
        assert main(["say", text, "-o", str(tmp_path / "b.wav"), *words, *model]) == 2
        error = capsys.readouterr().err
        assert told.replace("Latin", "Cyrillic") in error and not (tmp_path / "b.wav").exists()


def test_rows_of_several_languages(multilingual_babbler: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "g", "text": GERMAN, "language": "de"},
        {"id": "k", "text": KOREAN},
        {"id": "x", "text": GERMAN, "language": "xx"},
        {"id": "n", "text": GERMAN, "language": 5},
        {"id": "s", "text": "Hola a todos."},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "spoken"
    words = ["batch", str(tmp_path / "rows.jsonl"), "-d", str(out), "--model", str(multilingual_babbler)]
    assert main([*words, "--device", "cpu", "--language", "Spanish", "--max-tokens", "30"]) == 1
    entries = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    lines = {entry["id"]: entry for entry in entries if "id" in entry}
    assert lines["g"]["language"] == "de" and lines["s"]["language"] == "es" and (out / "g.wav").exists()
    assert "written in Hangul" in lines["k"]["error"] and "does not speak 'xx'" in lines["x"]["error"]
    assert "language must be a code" in lines["n"]["error"]


def test_server(multilingual_babbler: Path, tmp_path: Path) -> None:
    def start() -> AsyncChatterbox:
        return AsyncChatterbox(ChatterboxTTS.from_local(multilingual_babbler, "cpu", max_batch_size=2))

    facts = {"fake": {"languages": LANGUAGES}}
    with running(tmp_path, start, facts=facts) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"input": GERMAN, "language": "de", "seed": 1, "response_format": "pcm"}
        answer = http.post("/v1/audio/speech", json=body)
        assert answer.status_code == 200 and len(np.frombuffer(answer.content, np.int16)) > 9_600
        other = http.post("/v1/audio/speech", json=body | {"input": KOREAN, "language": "auto"})
        assert other.status_code == 200
        items = [
            {"input": GERMAN, "language": "de"},
            {"input": "你好，我们走吧。", "language": "zh", "prepared_text": True},
        ]
        both = http.post("/v1/audio/speech/batch", json={"items": items, "response_format": "wav"}).json()
        assert both["succeeded"] == 2
        refused = http.post("/v1/audio/speech", json=body | {"language": "Klingon"}).json()["error"]
        assert refused["code"] == "language_not_supported" and "does not speak 'Klingon'" in refused["message"]
        assert http.get("/page/facts.json").json()["models"][0]["languages"] == LANGUAGES
        unsure = http.post("/v1/audio/speech", json=body | {"input": "OK", "language": None})
        assert unsure.status_code == 400 and "give language" in unsure.json()["error"]["message"]


# Files.


def test_chinese_without_its_table(multilingual_babbler: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in multilingual_babbler.iterdir():
        if path.name != TABLE:
            (model / path.name).symlink_to(path)

    def start() -> AsyncChatterbox:
        return AsyncChatterbox(ChatterboxTTS.from_local(model, "cpu", max_batch_size=1))

    with running(tmp_path / "voices", start) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"input": "你好，我们走吧。", "language": "zh", "prepared_text": True}
        answer = http.post("/v1/audio/speech", json=body)
        told = answer.json()["error"]
        assert answer.status_code == 500 and told["code"] == "model_incomplete"
        assert f"{TABLE}: no such file" in told["message"]
        assert http.post("/v1/audio/speech", json={"input": GERMAN, "language": "de"}).status_code == 200


def test_quantized_parts_keep_their_names(multilingual_babbler: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    made = tmp_path / "made"
    quantize_model(
        multilingual_babbler, made, QuantizationConfig(t3="bnb-4bit", s3gen="bnb-4bit", voice_encoder="bnb-8bit")
    )
    assert {path.name for path in made.iterdir()} >= {MULTILINGUAL.s3gen, *MULTILINGUAL.tokenizer}
    with ChatterboxTTS.from_local(made, "cpu", max_batch_size=1, watermark=False) as tts:
        assert tts.get_quantization_info()["s3gen"]["method"] == "bnb-4bit"
        assert tts.generate(GERMAN, language="de", seed=1, max_tokens=30).shape[1] > 0


@pytest.fixture(scope="module")
def hindi(multilingual_babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetune for one language, whose S3Gen file lacks what follows from its dimensions."""
    directory = tmp_path_factory.mktemp("hindi")
    for name in (*MULTILINGUAL.tokenizer[:1], MULTILINGUAL.voice_encoder, MULTILINGUAL.builtin_voice):
        (directory / name).symlink_to(multilingual_babbler / name)
    (directory / HINDI_PACK.t3).symlink_to(multilingual_babbler / MULTILINGUAL.t3)
    s3gen = Weights(multilingual_babbler / MULTILINGUAL.s3gen)
    tensors = {key: s3gen.get(key) for key in s3gen.keys if key != "tokenizer._mel_filters"}
    save_file(tensors, directory / HINDI_PACK.s3gen)
    config = replace(MULTILINGUAL_BABBLE_CONFIG, family=HINDI_PACK.name)
    (directory / CONFIG_FILE).write_text(config.to_json())
    return directory


def test_a_model_of_one_language(hindi: Path, tts: ChatterboxMultilingualTTS, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", tts.generate(GERMAN, "de", seed=1)[0].numpy(), tts.sr)
    with ChatterboxTTS.from_local(hindi, "cpu", max_batch_size=1, watermark=False) as model:
        assert model.languages == {"hi": "Hindi"}
        (result,) = spoken(model, request(model, "नमस्ते दुनिया, कैसे हो?", None))
        assert result.error is None and result.language == "hi"
        (refused,) = spoken(model, request(model, GERMAN, "de"))
        assert "the multilingual-hi model does not speak 'de'; it speaks Hindi (hi)" in str(refused.error)
        # Enrolment hears by the filters that the file lacks.
        ours, theirs = model.enrol(tmp_path / "clip.wav"), tts.enrol(tmp_path / "clip.wav")
        assert torch.equal(ours.prompt.tokens, theirs.prompt.tokens)


def test_files_of_two_repositories(hindi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finetune's own files and those that it borrows come together in one directory."""
    assert HINDI_PACK.borrowed is not None
    folders = {HINDI_PACK.repository: HINDI_PACK.own_files, HINDI_PACK.borrowed.repository: HINDI_PACK.borrowed.files}
    asked: dict[str, tuple[str, ...]] = {}

    def download(repository: Any) -> Path:
        asked[repository.name] = repository.files
        folder = tmp_path / repository.name.replace("/", "--")
        folder.mkdir()
        for name in folders[repository.name]:
            os.link((hindi / name).resolve(), folder / name)
        return folder

    monkeypatch.setattr("chatterbox_vllm.checkpoint.hub.Repository.download", download)
    directory = models.resolve_model("multilingual-hi")
    assert asked[HINDI_PACK.repository] == (*HINDI_PACK.own_files, CONFIG_FILE)
    assert set(asked[HINDI_PACK.borrowed.repository]) == {"ve.pt", "conds.pt"}
    assert {path.name for path in directory.iterdir()} == {*HINDI_PACK.files, CONFIG_FILE}
    assert config_of(directory) == HINDI_PACK.config
    with pytest.raises(FileExistsError):  # a hub id of a family's own repository is that family
        models.resolve_model(HINDI_PACK.repository)


def test_every_family_is_whole() -> None:
    for family in (MULTILINGUAL, *SINGLE_LANGUAGES):
        assert registry.FAMILIES[family.name] is family and family.config.family == family.name
        assert set(family.own_files) | set(family.borrowed.files if family.borrowed else ()) == set(family.files)
        assert family.defaults.repetition_penalty == 1.2 and family.ending.unheard == 1
    assert {family.name: family.t3 for family in SINGLE_LANGUAGES}["multilingual-es-mx-latam"] == (
        "t3_es_mx_latam.safetensors"
    )
