"""What requests hold, for FastAPI to check and for the OpenAPI page to show."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from chatterbox_vllm.audio.tempo import FASTEST, SLOWEST
from chatterbox_vllm.families.parameters import MOST_TOP_K

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
SampleRate = Literal[8000, 16000, 22050, 24000, 44100, 48000]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class VoiceId(BaseModel):
    """A voice by its id."""

    id: str = Field(min_length=1, max_length=200)


def _check_voice(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One error of the field `voice`, in place of one for each of the types that it may have."""
    try:
        return check(given)
    except ValidationError:
        raise PydanticCustomError("voice_type", "Input should be a voice's name, or an object with its id") from None


class Speaking(BaseModel):
    """How to speak: what OpenAI's speech endpoint takes beside the text, and the model's own parameters.

    Fields that this server does not know are left unread and named in the answer's header x-chatterbox-ignored.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(default=None, max_length=200, description="the model's name, or one of OpenAI's")
    voice: Annotated[str | VoiceId | None, WrapValidator(_check_voice)] = Field(
        default=None, description="a voice's name or id; the default voice without"
    )
    instructions: str | None = Field(default=None, max_length=4096, description="is not followed: the model takes none")
    response_format: Format | None = Field(default=None, description="mp3 where it is not given")
    sample_rate: SampleRate | None = Field(
        default=None, description="of the audio, in Hz; 24000 where it is not given. opus has no 22050 and 44100"
    )
    speed: float | None = Field(default=None, ge=SLOWEST, le=FASTEST, description="1 where it is not given")
    language: str | None = Field(
        default=None, max_length=35, description="of the text: a code or an English name; told from it where not given"
    )
    prepared_text: bool | None = Field(
        default=None, description="the text holds what its language would need a library for, see docs/languages.md"
    )
    seed: Seed | None = None
    exaggeration: float | None = Field(default=None, ge=0, le=2)
    cfg_weight: float | None = Field(default=None, ge=0, le=10)
    temperature: float | None = Field(default=None, ge=0, le=5)
    min_p: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MOST_TOP_K, description="where the model has it; 0 is none")
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    max_tokens: int | None = Field(default=None, ge=1, le=4096, description="most speech tokens of a piece")
    diffusion_steps: int | None = Field(default=None, ge=1, le=100)
    clean_text: bool | None = Field(default=None, description="make markdown, addresses and emoji fit to be spoken")
    ref_audio: str | None = Field(default=None, description="a clip in base64, or its address where that is allowed")
    norm_loudness: bool | None = Field(
        default=None, description="bring ref_audio to the loudness of the model's voices; true where the model does it"
    )


class SpeechBody(Speaking):
    """A text to speak."""

    input: str = Field(min_length=1, description="the text, at most 4096 characters where the server sets no other")
    stream_format: Literal["sse", "audio"] | None = Field(default=None, description="events, or the bytes alone")
    stream: bool | None = Field(
        default=None, description="send audio as it comes; true but for wav, whose length then stands in its header"
    )


class BatchItem(Speaking):
    """One text of a batch; what it does not say is as the batch says."""

    input: str = Field(min_length=1)


class BatchBody(Speaking):
    """Several texts to speak at once."""

    items: list[BatchItem] = Field(min_length=1, max_length=128)


class BatchResult(BaseModel):
    """What became of one text: audio in base64, or an error."""

    index: int
    status: Literal["success", "error"]
    audio_data: str | None = None
    media_type: str | None = None
    seconds: float | None = None
    seed: int | None = None
    error: dict[str, Any] | None = None


class BatchAnswer(BaseModel):
    """All results in the order of the items."""

    id: str
    results: list[BatchResult]
    total: int
    succeeded: int
    failed: int


class Voice(BaseModel):
    """A voice that was made here, as OpenAI describes one."""

    id: str
    created_at: int
    name: str
    object: Literal["audio.voice"] = "audio.voice"
    type: Literal["audio_sample"] = "audio_sample"


class Deleted(BaseModel):
    """What was removed."""

    id: str
    deleted: bool
    object: str


class ConsentBody(BaseModel):
    """A consent as OpenAI describes one."""

    id: str
    created_at: int
    language: str
    name: str
    object: Literal["audio.voice_consent"] = "audio.voice_consent"


class ConsentName(BaseModel):
    """A consent's new name."""

    name: str = Field(min_length=1, max_length=200)


class ConsentPage(BaseModel):
    """Some consents, the newest first."""

    object: Literal["list"] = "list"
    data: list[ConsentBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ListedVoice(BaseModel):
    """A voice that can be named in a request."""

    id: str
    name: str
    kind: Literal["library", "model", "alias"]
    speaks_as: str | None = Field(default=None, description="the voice that an alias stands for")
    models: list[str] = Field(default=[], description="names of the models that a voice of kind model comes with")
    created_at: int | None = Field(default=None, description="when a voice of the library was made")
    languages: list[str] = Field(default=[], description="BCP 47 tags of what the reference clip spoke, as far as told")
    preview: str | None = Field(default=None, description="path of a short clip of the speaker, where there is one")


class Converting(BaseModel):
    """How to convert a recording."""

    model: str | None = None
    voice: str | None = None
    response_format: Format = "mp3"
    speed: float = 1.0
    seed: Seed | None = None
    diffusion_steps: int | None = None


class VoiceList(BaseModel):
    """All voices that can be named."""

    voices: list[ListedVoice]


class Model(BaseModel):
    """A model as OpenAI describes one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatterbox-vllm"
    root: str = Field(description="the model that the name stands for")
    loaded: bool = Field(description="whether it is in memory")


class ModelList(BaseModel):
    """The models' names that are answered to."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[Model] = Field(description="the same once more, for clients that look here")


class Warmed(BaseModel):
    """How long the model took for a short sentence."""

    seconds: float
    audio_seconds: float


Status = Literal["ok", "loading", "unloading", "asleep", "failed", "closed"]


class ModelHealth(BaseModel):
    """What one of the server's models does at this moment."""

    status: Status
    loaded: bool
    users: int = Field(description="requests that use or wait for it")
    loads: int = Field(description="times it was loaded again")
    expected_bytes: int | None = Field(description="that it is expected to take, where there is a budget")
    failure: str | None


class Health(BaseModel):
    """What the server is and does at this moment; what is not said by model is of its first one, but for `queue`."""

    status: Status
    live: bool
    ready: bool
    model: str
    models: dict[str, ModelHealth]
    device: str | None
    tier: Any
    quantization: dict[str, Any] | None = Field(description="as it is on the live modules")
    queue: dict[str, float]
    loads: int
    failure: str | None


class PageField(BaseModel):
    """A number that the page lets people choose: what the server takes, and what the model speaks with of itself."""

    low: float
    high: float
    default: float


class PageModel(BaseModel):
    """What the page has to know of a model; `languages` are names by code."""

    name: str
    languages: dict[str, str]
    fields: dict[str, PageField]


class PageFacts(BaseModel):
    """What the page at `/` has to know of the server; `max_clip` is in bytes, the first model is the default."""

    max_text: int
    max_clip: int
    models: list[PageModel]


class ShimBody(BaseModel):
    """What SillyTavern's Chatterbox provider sends."""

    model_config = ConfigDict(extra="ignore")

    text: str = Field(min_length=1)
    voice_mode: Literal["predefined", "clone"] = "predefined"
    predefined_voice_id: str | None = Field(default=None, max_length=200)
    reference_audio_filename: str | None = Field(default=None, max_length=200)
    output_format: Literal["wav", "opus", "mp3", "aac", "flac"] = "wav"
    temperature: float | None = Field(default=None, ge=0, le=5)
    exaggeration: float | None = Field(default=None, ge=0, le=2)
    cfg_weight: float | None = Field(default=None, ge=0, le=10)
    seed: int | None = Field(default=None, ge=-1, le=2**63 - 1, description="-1 draws one")
    speed_factor: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    language: str | None = Field(default=None, max_length=35)
