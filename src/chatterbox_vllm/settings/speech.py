"""How a text is spoken, by whom, and how it is read."""

from __future__ import annotations

from chatterbox_vllm.settings.setting import Setting

# Fields of `SpeechParameters`, keywords of `ChatterboxTTS.generate`; the defaults are those of the default family.
SPEECH = (
    Setting("exaggeration", "emotion, 0 to 2; 0.5 is neutral", default=0.5, option="--exaggeration"),
    Setting("cfg_weight", "guidance towards the text, 0 to 10; 0 is none", default=0.5, option="--cfg-weight"),
    Setting("temperature", "0 to 5; 0 takes the likeliest token", default=0.8, option="--temperature"),
    Setting("min_p", "least share of the likeliest token's probability, 0 to 1", default=0.05, option="--min-p"),
    Setting("top_p", "nucleus of the distribution, above 0 to 1", default=1.0, option="--top-p"),
    Setting(
        "top_k",
        "so many of the likeliest tokens, 0 for all; Turbo and Nano have it",
        default=0,
        option="--top-k",
    ),
    Setting("repetition_penalty", "0.1 to 10; 1 is none", default=1.2, option="--repetition-penalty"),
    Setting(
        "max_tokens",
        "most speech tokens of a piece, 25 to a second; the default gives way to what the model length leaves",
        default=1000,
        option="--max-tokens",
    ),
    Setting(
        "diffusion_steps",
        "solver steps from noise to mel, 1 to 100",
        unset="what the model's config.json names, else 10",
        option="--diffusion-steps",
    ),
    Setting("seed", "the same seed gives the same audio", unset="a new one each time", option="--seed"),
)
LANGUAGE = Setting(
    "language",
    "of the text: a code such as de, or an English name such as German; the model has to speak it",
    unset="the model's only one, else told from the text",
    option="--language",
)
# Keyword of `ChatterboxTTS.generate`, beside the clip.
NORM_LOUDNESS = Setting(
    "norm_loudness",
    "bring a clip to the loudness that the model's voices have, or leave it as loud as it is; Turbo and Nano have it",
    unset="on for Turbo and Nano",
    option="--norm-loudness/--no-norm-loudness",
)
VOICE = (NORM_LOUDNESS,)
# Fields of `SpeechRequest`, keywords of `ChatterboxTTS.generate`.
TEXT = (
    Setting(
        "pauses",
        "a `Pauses`: seconds of silence where a text is cut, 0 to 60 each; on the command line KIND=SECONDS, repeated. "
        "[pause:0.5s] in a text asks for one there",
        unset="clause 0.15, sentence 0.35, paragraph 0.7, heading 0.7, scene 1",
        option="--pause",
    ),
    Setting(
        "clean_text",
        "make markdown, addresses, footnote marks and emoji fit to be spoken: true, or a `Cleaning`",
        default=False,
        option="--clean-text/--no-clean-text",
    ),
    LANGUAGE,
    Setting(
        "prepared_text",
        "the text holds what its language would need a library for (Chinese spaces between words, Japanese without "
        "kanji, Hebrew vowels, Russian stress), or is to be spoken without",
        default=False,
        option="--prepared-text/--no-prepared-text",
    ),
)
