"""Request bodies of the chat API, as OpenAI's clients and their relatives send them. Responses: `responses`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_STOP = 4
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # of all messages


class _Open(BaseModel):
    """Unknown fields are ignored, as clients send many that concern other servers."""

    model_config = ConfigDict(extra="allow")


class MediaUrl(_Open):
    """Where a picture or clip is; `detail` and the like are ignored."""

    url: str


class TextPart(_Open):
    type: Literal["text"]
    text: str


class ImagePart(_Open):
    type: Literal["image_url"]
    image_url: MediaUrl | str


class VideoPart(_Open):
    type: Literal["video_url"]
    video_url: MediaUrl | str


class FileData(_Open):
    file_data: str


class FilePart(_Open):
    """A clip as LiteLLM sends it: `file_data` is a data: URI."""

    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class Message(_Open):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(_Open):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class ResponseFormat(_Open):
    type: str


class Extra(_Open):
    """What this server alone does.

    Attributes:
        return_overlay: give the picture of the kept patches as a PNG data: URI.
        reselect: False keeps the tokens that the dialogue's first question chose, so that the shared prompt prefix is not
            computed again; True selects anew for this question.
    """

    return_overlay: bool = False
    reselect: bool = True


class ChatRequest(_Open):
    """The body of POST /v1/chat/completions.

    `keep`, `alpha`, `tau`, `frames`, `frame_tolerance`, `prune_tiles`, `positions`, `min_pixels`, `max_pixels`, `scope`,
    `min_per_frame` and `first_token` may stand here, in `mm_processor_kwargs`, or (frames, as `num_frames`) in
    `media_io_kwargs["video"]`; here they count first.
    """

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    logprobs: bool | None = False
    top_logprobs: int | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    ignore_eos: bool | None = False
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    keep: float | int | str | None = None
    alpha: float | None = None
    tau: float | None = None
    frames: int | None = None
    frame_tolerance: float | None = None
    prune_tiles: bool | None = None
    positions: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    scope: str | None = None
    min_per_frame: int | None = None
    first_token: float | str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    rediprune: Extra = Extra()
