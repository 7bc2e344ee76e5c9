"""`ChatterboxTTS`: the public class, used as the published one is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from chatterbox_vllm.engine.request import AudioChunk, SpeechParameters, SpeechRequest, SpeechResult
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.loaded.tts import LoadedTTS
from chatterbox_vllm.text.clean import Cleaning
from chatterbox_vllm.text.pauses import DEFAULT_PAUSES, Pauses
from chatterbox_vllm.voices.voice import Voice


class ChatterboxTTS(LoadedTTS):
    """Chatterbox on vLLM. Make one with `from_pretrained` or `from_local`; close it with `shutdown` or a `with` block.

    Attributes: those of `LoadedTTS` and `LoadedModel`, `sr` and `conds` as in the published class.
    """

    def prepare_conditionals(
        self, wav_fpath: str | os.PathLike[str], exaggeration: float | None = None, norm_loudness: bool | None = None
    ) -> None:
        """Make the speaker of a clip, or a saved voice, the voice in use, for this and later calls.

        Args:
            wav_fpath: audio of any common format, rate and channel count, 0.5 s to 10 minutes; or a file that
                `Voice.save` wrote.
            exaggeration: accepted as the published method does and checked; emotion is a parameter of `generate`.
            norm_loudness: whether a clip is brought to the loudness that the model's voices have; None does so for
                Turbo and Nano. Other models hear clips as loud as they are, and refuse True.

        Raises:
            AudioError: the file cannot be decoded or used.
            ConfigError: `norm_loudness` is given for a saved voice, or asks for what the model does not do.
            CheckpointError: it is a saved voice that is damaged or made for another model.
        """
        if exaggeration is not None:
            SpeechParameters(exaggeration=exaggeration)
        self.conds = self.enrol(wav_fpath, norm_loudness)

    def _hear(self, clip: str | os.PathLike[str] | None, norm_loudness: bool | None) -> None:
        """`prepare_conditionals`, where there is a clip."""
        if clip is not None:
            self.prepare_conditionals(clip, norm_loudness=norm_loudness)
        elif norm_loudness is not None:
            raise ConfigError("norm_loudness is of a clip: give audio_prompt_path, too, or leave it out")

    def enrol(self, path: str | os.PathLike[str], norm_loudness: bool | None = None) -> Voice:
        """The voice of a clip or of a saved voice; read once for as long as the file does not change.

        Args:
            norm_loudness: as for `prepare_conditionals`.
        """
        return self._files.voice(Path(path), norm_loudness)

    def enrol_clip(self, clip: bytes, norm_loudness: bool | None = None) -> Voice:
        """The voice of a clip in memory: the bytes of an audio file. Equal bytes are enrolled once.

        Args:
            norm_loudness: as for `prepare_conditionals`.

        Raises:
            AudioError: it cannot be decoded or used.
            ConfigError: `norm_loudness` asks for what the model does not do.
        """
        return self._files.voice_of_clip(clip, norm_loudness)

    @overload
    def generate(self, text: str, *args: Any, **parameters: Any) -> torch.Tensor: ...
    @overload
    def generate(self, text: Sequence[str], *args: Any, **parameters: Any) -> list[Any]: ...
    def generate(
        self,
        text: str | Sequence[str],
        repetition_penalty: float | None = None,
        min_p: float | None = None,
        top_p: float | None = None,
        audio_prompt_path: str | os.PathLike[str] | None = None,
        exaggeration: float | None = None,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        norm_loudness: bool | None = None,
        *,
        max_tokens: int | None = None,
        diffusion_steps: int | None = None,
        seed: int | None = None,
        pauses: Pauses = DEFAULT_PAUSES,
        clean_text: bool | Cleaning = False,
        language: str | None = None,
        language_id: str | None = None,
        prepared_text: bool = False,
        return_exceptions: bool = False,
        progress: bool | None = None,
    ) -> torch.Tensor | list[Any]:
        """Speak a text, or a list of them together.

        Args:
            text: one text, or a list.
            audio_prompt_path: a reference clip; as in the published class, it stays the voice in use for later calls.
            norm_loudness: of that clip, see `prepare_conditionals`.
            seed: of all randomness; text i of a list gets seed + i. The same seed gives the same audio on the same
                device, in float32 whatever else is in the batch.
            pauses: seconds of silence where a text is cut; "[pause:0.5s]" in a text overrides them at its place.
            clean_text: make markdown, addresses, footnote marks and emoji fit to be spoken.
            language, prepared_text: of all the texts, see `SpeechRequest`.
            language_id: the published name of `language`.
            return_exceptions: for a list, put a failed text's error in its place instead of raising `BatchError`.
            progress: show a bar; None does so for a list, on a terminal.
            others: see `SpeechParameters`; what is None takes the model's own default.

        Returns:
            float32 audio (1, n) on the CPU at `sr`; for a list, a list of them (or errors, see above) in its order.

        Raises:
            ConfigError: a parameter out of range, an empty or overlong text.
            AudioError: the reference clip cannot be used.
            GenerationError: the text could not be spoken.
            BatchError: some texts of a list failed; it holds the audio of all others.
        """
        if language is not None and language_id is not None:
            raise ConfigError("language and language_id are one: give either")
        language = language_id if language is None else language
        # Checked first: a bad parameter must not change the voice in use.
        parameters = SpeechParameters(
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            temperature=temperature,
            min_p=min_p,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            max_tokens=max_tokens,
            diffusion_steps=diffusion_steps,
            seed=seed,
        )
        self._hear(audio_prompt_path, norm_loudness)
        if not isinstance(text, (str, list, tuple)):
            raise ConfigError(f"text must be a string or a list of strings, not {type(text).__name__}")
        texts = [text] if isinstance(text, str) else list(text)
        voice = self.voice

        def request(i: int) -> SpeechRequest:
            return SpeechRequest(
                texts[i],
                voice,
                parameters.of_item(i),
                pauses=pauses,
                clean_text=clean_text,
                language=language,
                prepared_text=prepared_text,
            )

        return self._generate(request, len(texts), not isinstance(text, str), return_exceptions, progress, "text")

    def generate_iter(
        self, texts: Iterable[str], *, language: str | None = None, prepared_text: bool = False, **parameters: Any
    ) -> Iterator[SpeechResult]:
        """Speak texts as they come; yield each result when it is ready, failures included, in no particular order.

        Args:
            texts: any iterable, read only as far ahead as keeps the engine busy.
            language, prepared_text: of all the texts, see `SpeechRequest`.
            parameters: those of `SpeechParameters`; text i gets seed + i.
        """
        settings = SpeechParameters(**parameters)
        voice = self.voice
        return self.run(
            SpeechRequest(text, voice, settings.of_item(i), language=language, prepared_text=prepared_text)
            for i, text in enumerate(texts)
        )

    def generate_stream(
        self,
        text: str,
        *,
        audio_prompt_path: str | os.PathLike[str] | None = None,
        norm_loudness: bool | None = None,
        pauses: Pauses = DEFAULT_PAUSES,
        clean_text: bool | Cleaning = False,
        language: str | None = None,
        prepared_text: bool = False,
        **parameters: Any,
    ) -> Iterator[AudioChunk | SpeechResult]:
        """Speak a text of any length; yield its audio in chunks while it is still being spoken.

        The last event is the text's `SpeechResult`: seed, finish reason, sample count, timings, and no audio. The audio
        is about that of `generate` from the same seed, and as many samples for a text of one piece; how it is cut
        depends on the text alone, so that the same seed gives the same audio. Closing the iterator ends the work.

        Args:
            parameters: those of `SpeechParameters`.
            others: as for `generate`.

        Raises:
            ConfigError, AudioError, GenerationError: as `generate`, and ConfigError where the model is in use.
        """
        settings = SpeechParameters(**parameters)
        self._hear(audio_prompt_path, norm_loudness)
        request = SpeechRequest(
            text,
            self.voice,
            settings,
            pauses=pauses,
            clean_text=clean_text,
            language=language,
            prepared_text=prepared_text,
        )
        return self.stream(request)

    @property
    def voice(self) -> Voice:
        """The voice in use.

        Raises:
            ConfigError: there is none.
        """
        if self.conds is None:
            raise ConfigError("there is no voice: pass audio_prompt_path or call prepare_conditionals first")
        return self.conds
