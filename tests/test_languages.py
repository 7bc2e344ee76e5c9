"""Languages in text: how each is cut, prepared, told from others, and refused."""

from __future__ import annotations

import json
import logging
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.multilingual import LANGUAGES, MULTILINGUAL, SINGLE_LANGUAGES, TOKENIZER
from chatterbox_vllm.settings import HEBREW_MODEL
from chatterbox_vllm.text.arriving import ArrivingText
from chatterbox_vllm.text.breaks import Break, breaks, end_of
from chatterbox_vllm.text.languages.chinese import TABLE, CangjieTable
from chatterbox_vllm.text.languages.detection import detect_language
from chatterbox_vllm.text.languages.reading import Reader, plain
from chatterbox_vllm.text.languages.rules import RULES, rules_of
from chatterbox_vllm.text.script import read_script
from chatterbox_vllm.text.split import LONGEST
from chatterbox_vllm.text.tokenizer import MultilingualTokenizer

PACKS = {family.name: family for family in SINGLE_LANGUAGES}
# Words of a language in each script, and the marks that end its sentences.
WORDS = {
    "de": ("der Fluss trägt die alten Boote über Wasser und Steine hinaus", ".!?"),
    "el": ("η θάλασσα φέρνει τα παλιά καράβια στο λιμάνι κάθε πρωί", ".!;"),
    "ru": ("река несёт старые лодки мимо камней к морю каждое утро", ".!?"),
    "he": ("הנהר נושא את הסירות הישנות אל הים בכל בוקר", ".!?"),
    "ar": ("النهر يحمل القوارب القديمة نحو البحر كل صباح", ".!؟"),
    "hi": ("नदी पुरानी नावों को हर सुबह समुद्र तक ले जाती है", "।!?"),
    "zh": ("河水 每天 早上 把 旧 船 带到 海边", "。！？"),
    "ja": ("川は まいあさ ふるい ふねを 海まで はこんで いく カモメ", "。！？"),
    "ko": ("강물은 매일 아침 낡은 배를 바다로 데려간다", ".!?"),
}
UNSPACED = ("zh", "ja")


@st.composite
def texts(draw: st.DrawFn, language: str) -> list[str]:
    """Sentences of a language, each without spaces at its ends."""
    words, stops = WORDS[language]
    glue = "" if language in UNSPACED else " "
    sentence = st.builds(
        lambda said, stop: glue.join(said) + stop,
        st.lists(st.sampled_from(words.split()), min_size=2, max_size=12),
        st.sampled_from(stops),
    )
    return draw(st.lists(sentence, min_size=1, max_size=40))


@pytest.mark.parametrize("language", WORDS)
def test_no_word_is_lost_doubled_or_cut(language: str) -> None:
    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(texts(language))
    def check(sentences: list[str]) -> None:
        rules = rules_of(language)
        text = ("" if language in UNSPACED else " ").join(sentences)
        pieces = [
            piece.text for piece in read_script(text, longest=rules.longest, scripts=rules.scripts, language=language)
        ]
        assert max(map(len, pieces)) <= rules.longest
        if language in UNSPACED:
            assert "".join(pieces) == text
        else:
            assert " ".join(pieces).split() == text.split()
        # There is room for whole sentences, so that none is cut.
        assert all(piece[-1] in WORDS[language][1] for piece in pieces)

    check()


@pytest.mark.parametrize("language", WORDS)
def test_a_sentence_that_is_too_long_is_cut_between_words(language: str) -> None:
    words, stops = WORDS[language]
    glue = "" if language in UNSPACED else " "
    text = glue.join(words.split() * 60) + stops[0]
    pieces = read_script(text, longest=rules_of(language).longest, language=language)
    assert len(pieces) > 1 and not any(piece.ends_sentence for piece in pieces[:-1])
    joined = glue.join(piece.text for piece in pieces)
    assert joined == text
    assert all(len(piece.text) > rules_of(language).longest / 4 for piece in pieces)


@pytest.mark.parametrize("language", RULES)
def test_a_piece_is_some_twenty_seconds(language: str) -> None:
    rules = rules_of(language)
    assert rules.longest / rules.pace == pytest.approx(20, rel=0.02)
    assert rules_of("en").longest == LONGEST == 300 and rules_of("zh").longest == 90
    assert rules_of("en").positions == 4 and rules_of("zh").positions == 17


def sentences(text: str, language: str) -> int:
    return 1 + sum(kind == Break.SENTENCE and place < len(text) for place, kind in breaks(text, language))


@pytest.mark.parametrize(
    ("language", "text", "wanted"),
    [
        ("de", "Am 3. Oktober kam Dr. Weber, d. h. z. B. heute. Er blieb.", 2),
        ("de", "Es waren 1990. Danach nicht mehr.", 2),
        ("en", "I had 3. October was late.", 2),
        ("da", "Den 5. juni kl. 8 kom hr. Holm. Han gik.", 2),
        ("pl", "Urodził się 3. maja, tj. w środę. Potem wyjechał.", 2),
        ("fr", "M. Dupont et Mme. Roy sont là. Ils mangent.", 2),
        ("es", "La Sra. Gil y el Dr. Paz llegaron. Era tarde.", 2),
        ("ru", "Это ул. Ленина, д. 5. Там живёт акад. Павлов.", 2),
        ("el", "Τι κάνεις; Καλά, ευχαριστώ. Ο κ. Νίκος ήρθε.", 3),
        ("de", "Er kam; sie ging.", 1),
        ("ar", "جاء د. أحمد إلى البيت. ثم ذهب؟ نعم.", 3),
        ("he", 'צה"ל הודיע היום. הוא בא! מתי?', 3),
        ("hi", "वह आया। वह गया। क्यों?", 3),
        ("zh", "你好。我是学生！你呢？", 3),
        ("zh", "你好.我是学生!你呢?", 3),
        ("zh", "圆周率是3.14，他说。", 1),
        ("ja", "「行こう。」と言った。そして帰った。", 2),
        ("ko", "네. 알겠습니다. 갑시다!", 3),
    ],
)
def test_where_sentences_end(language: str, text: str, wanted: int) -> None:
    assert sentences(text, language) == wanted


def test_a_greek_question_ends_a_sentence() -> None:
    assert end_of("Τι κάνεις;") == Break.SENTENCE and end_of("He came;") == Break.CLAUSE


def test_scripts_of_other_languages_are_refused() -> None:
    for language, (words, _) in WORDS.items():
        for other in WORDS:
            scripts = rules_of(other).scripts
            if scripts >= rules_of(language).scripts or language in UNSPACED and other in UNSPACED:
                continue
            with pytest.raises(ConfigError, match=f"as '{other}'.*or its own language"):
                read_script(words, scripts=scripts, language=other)
    for code in LANGUAGES:  # Thai is of no language of the model
        with pytest.raises(ConfigError, match="written in Thai"):
            read_script("สวัสดีตอนเช้าทุกคน", scripts=rules_of(code).scripts, language=code)


def test_text_that_arrives_is_cut_by_its_language() -> None:
    text = ArrivingText("de")
    assert text.add("Am 3. Oktober kam sie. Und") == "Am 3. Oktober kam sie."
    long = ArrivingText("zh")
    assert long.add("河水每天早上，" * 12) == "" and long.add("河水每天早上，" * 2) != ""


# How languages are named.


@pytest.mark.parametrize(
    ("given", "code"),
    [("de", "de"), ("DE", "de"), ("German", "de"), ("pt-BR", "pt"), ("zh_CN", "zh"), ("nb", "no"), ("iw", "he")],
)
def test_names_of_languages(given: str, code: str) -> None:
    assert MULTILINGUAL.language(given) == code


def test_a_model_refuses_what_it_does_not_speak() -> None:
    with pytest.raises(ConfigError, match=r"multilingual model does not speak 'xx'; it speaks Arabic \(ar\), "):
        MULTILINGUAL.language("xx")
    with pytest.raises(ConfigError, match=r"english model does not speak 'de'; it speaks English \(en\)$"):
        ENGLISH.language_of("Guten Tag.", "de")
    with pytest.raises(ConfigError, match=r"multilingual-hi model does not speak 'English'; it speaks Hindi \(hi\)$"):
        PACKS["multilingual-hi"].language("English")
    assert PACKS["multilingual-pt-br"].language_of("Hello.") == "pt"  # its only one
    assert set(LANGUAGES) == set(RULES)


# How a language is told.


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Guten Tag, wie geht es Ihnen heute?", "de"),
        ("Bonjour, comment allez-vous ?", "fr"),
        ("Jeg liker å gå på tur i skogen når det regner.", "no"),
        ("Habari ya asubuhi", "sw"),
        ("今日は良い天気ですね。", "ja"),
        ("你好，我是中国人。", "zh"),
        ("[pause:0.5s] Привет! [pause:1s]", "ru"),
        ("The word 日本 means Japan in Japanese, they say.", "en"),
        ("नमस्ते दुनिया", "hi"),
    ],
)
def test_told_from_the_text(text: str, code: str) -> None:
    assert detect_language(text, LANGUAGES) == code
    assert MULTILINGUAL.language_of(text) == code


@pytest.mark.parametrize("text", ["Hallo", "OK", "1234", "สวัสดีตอนเช้า", "I"])
def test_what_cannot_be_told_is_asked_for(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be told for certain.*; give language$"):
        detect_language(text, LANGUAGES)
    assert MULTILINGUAL.language_of(text, "German") == "de"


def test_only_the_models_languages_are_thought_of() -> None:
    assert detect_language("Good morning, how are you today?", {"de": "German", "en": "English"}) == "en"


def test_without_the_library_a_language_has_to_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ConfigError, match=r"chatterbox-vllm-engine\[detect\]', or give language"):
        detect_language("Guten Tag, wie geht es?", {"de": "German", "fr": "French", "nl": "Dutch"})


# How a text is prepared.


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    entries = [("你", "onf"), ("好", "vnd"), ("国", "wmgi"), ("囯", "wmgi"), ("國", "wirm")]
    (tmp_path / TABLE).write_text(json.dumps([f"{character}\t{code}" for character, code in entries]))
    return Reader(tmp_path)


def test_plain_text() -> None:
    assert plain("ÄÖ ﬁ ＡＢ 안") == "a\u0308o\u0308 fi ab \u110b\u1161\u11ab"
    assert plain("1½") == "11\u20442"  # as published


def test_cangjie(reader: Reader, tmp_path: Path) -> None:
    assert reader.read("你好, 囯x", "zh", prepared=True) == (
        "[cj_o][cj_n][cj_f][cj_.][cj_v][cj_n][cj_d][cj_.], [cj_w][cj_m][cj_g][cj_i][cj_1][cj_.]x"
    )
    for wrong in ("{}", "[1]", "not json", '["no tab"]'):
        (tmp_path / "wrong.json").write_text(wrong)
        if wrong == "{}":
            assert CangjieTable(tmp_path / "wrong.json").encode("你") == "你"
            continue
        with pytest.raises(CheckpointError, match=r"wrong\.json: not a table of Cangjie codes"):
            CangjieTable(tmp_path / "wrong.json")


def test_chinese_words(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModuleType("spacy_pkuseg")
    found.pkuseg = lambda: SimpleNamespace(cut=lambda text: ["你", "好"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy_pkuseg", found)
    assert reader.read("你好", "zh", prepared=False).count("[cj_.] [cj_v]") == 1


def test_a_model_of_words_that_cannot_be_fetched(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def pkuseg() -> None:
        raise OSError("no network")

    config = SimpleNamespace(model_urls={"spacy_ontonotes": "https://words"}, pkuseg_home="/home/words")
    monkeypatch.setitem(sys.modules, "spacy_pkuseg", SimpleNamespace(pkuseg=pkuseg, config=config))
    with pytest.raises(ConfigError, match=r"OSError: no network\); fetch https://words.*prepared_text=True"):
        reader.read("你好", "zh", prepared=False)


def test_japanese(reader: Reader) -> None:
    assert reader.read(plain("今日は行く。"), "ja", prepared=False) == "こんにちはいく。"
    assert reader.read(plain("母へ"), "ja", prepared=False) == " ははへ"  # a reading that begins like a particle
    assert reader.read(plain("カタカナ"), "ja", prepared=False) == "カタカナ"
    assert reader.read("漢字", "ja", prepared=True) == "漢字"


def test_hebrew(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Dicta:
        def __init__(self, path: str):
            made.append(path)

        def add_diacritics(self, text: str) -> str:
            if text == "broken":
                raise RuntimeError("runtime")
            return text + "ָ"

    monkeypatch.setitem(sys.modules, "dicta_onnx", SimpleNamespace(Dicta=Dicta))
    assert HEBREW_MODEL.variable is not None
    with pytest.raises(ConfigError, match=rf"name its file in {HEBREW_MODEL.variable}.*prepared_text=True"):
        reader.read("שלום", "he", prepared=False)
    monkeypatch.setenv(HEBREW_MODEL.variable, "dicta.onnx")
    assert reader.read("שלום", "he", prepared=False) == "שלוםָ" and made == ["dicta.onnx"]
    assert reader.read("שלום", "he", prepared=True) == "שלום"
    with pytest.raises(ConfigError, match="RuntimeError: runtime"):
        reader.read("broken", "he", prepared=False)


def test_russian(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(RussianTextStresser=lambda: SimpleNamespace(stress_text=lambda text: text + "\u0301"))
    monkeypatch.setitem(sys.modules, "russian_text_stresser", ModuleType("russian_text_stresser"))
    monkeypatch.setitem(sys.modules, "russian_text_stresser.text_stresser", module)
    assert reader.read("мир", "ru", prepared=False) == "мир\u0301"
    assert reader.read("мир", "ru", prepared=True) == "мир"


@pytest.mark.parametrize(
    ("language", "module", "remedy"),
    [
        ("zh", "spacy_pkuseg", r"engine\[zh\]"),
        ("ja", "pykakasi", r"engine\[ja\]"),
        ("he", "dicta_onnx", r"engine\[he\]"),
        ("ru", "russian_text_stresser", r"pip install git\+https"),
    ],
)
def test_a_library_that_is_missing(
    reader: Reader, language: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{LANGUAGES[language]} texts need.*{remedy}.*prepared_text=True"):
        reader.read("x", language, prepared=False)
    assert reader.read("x", language, prepared=True) == "x"


# The tokenizer of the small synthetic checkpoint.


@pytest.fixture(scope="module")
def tokenizer(multilingual_babbler: Path) -> MultilingualTokenizer:
    return MultilingualTokenizer(multilingual_babbler / TOKENIZER)


def test_the_tag_leads(tokenizer: MultilingualTokenizer) -> None:
    german, english, none = (tokenizer.encode("Tag", language) for language in ("de", "en", None))
    assert german[1:] == english[1:] == none and german[0] != english[0]
    with pytest.raises(CheckpointError, match=r"no tag \[xx\]"):
        tokenizer.encode("Tag", "xx")


def test_control_tokens_do_not_act_in_any_spelling(tokenizer: MultilingualTokenizer) -> None:
    plainly = tokenizer.encode("it de", "en")
    for spelled in ("[it] [de]", "[IT] [De]", "［it］ [ＤＥ]", "[[it]] de"):
        assert tokenizer.encode(spelled, "en") == plainly, spelled


def test_letters_without_a_token(tokenizer: MultilingualTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    assert tokenizer.unknown_letters("Tag đ ð, đ 5 €!", "de") == ["đ", "ð", "€"]
    assert tokenizer.unknown_letters("你好丂", "zh", True) == []
    assert tokenizer.unknown_id in tokenizer.encode("đ", "de")
    assert tokenizer.unknown_id not in tokenizer.encode("Grüße, Straße, année", "de")
    with caplog.at_level(logging.WARNING):
        from chatterbox_vllm.text.writing_systems import warn_of_unknown_letters

        warn_of_unknown_letters([])
        warn_of_unknown_letters([*"đð" * 5])
    (record,) = caplog.records
    assert "đ (LATIN SMALL LETTER D WITH STROKE), ð" in record.message and "and 2 more" in record.message


def test_every_word_of_every_script_has_tokens(tokenizer: MultilingualTokenizer) -> None:
    for language, (words, stops) in WORDS.items():
        prepared = language != "ja"
        assert tokenizer.unknown_letters(words + stops, language, prepared) == [], language
        ids = [tokenizer.encode(word, language, prepared) for word in words.split()]
        assert all(a != b for a, b in pairwise(ids))
