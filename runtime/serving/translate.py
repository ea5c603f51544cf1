"""From a request's body to what a pipeline takes: a dialogue, media, options. What cannot be obeyed is refused by name."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import RedipruneError
from ..options import GenerateOptions, SelectOptions
from .api_error import ApiError, refuse
from .media_fetch import MediaPolicy, fetch
from .protocol import (
    MAX_PARTS,
    MAX_STOP,
    MAX_TOP_LOGPROBS,
    ChatRequest,
    FilePart,
    ImagePart,
    MediaUrl,
    Message,
    TextPart,
    VideoPart,
)
from .serve_settings import RequestLimits

# Fields of other servers that would change the answer, and the values that ask for nothing. All others are ignored.
_NOT_OBEYED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None, True),
    "audio": (None,),
    "best_of": (None, 1),
    "continue_final_message": (None, False),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "min_tokens": (None, 0),
    "modalities": (None, ["text"]),
    "prompt_logprobs": (None, 0),
    "structured_outputs": (None,),
    "use_beam_search": (None, False),
}
_SELECT = (
    *("keep", "alpha", "tau", "frames", "frame_tolerance", "prune_tiles", "positions"),
    *("min_pixels", "max_pixels", "scope", "min_per_frame", "first_token"),
)


@dataclass(frozen=True)
class MediaRef:
    """A picture or clip, not fetched yet; `param` is the field that names it."""

    kind: Literal["image", "video"]
    url: str
    param: str


@dataclass(frozen=True)
class Translated:
    """A request as a pipeline takes it.

    Attributes:
        messages: the dialogue in transformers' form, a part for each picture or clip.
        media: in the order of the dialogue.
        first_turn: the dialogue up to the first question about its media, which steers the selection where `reselect` is
            off; None where it is on.
        ignore_eos: go on behind the tokens that end an answer, to max_tokens (vLLM's field; load generators use it).
        top_logprobs: how many alternatives to give per token; None: no log probabilities at all.
    """

    messages: list[dict[str, Any]]
    media: list[MediaRef]
    selection: SelectOptions
    generation: GenerateOptions
    first_turn: list[dict[str, Any]] | None = None
    ignore_eos: bool = False
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_overlay: bool = False


@dataclass
class _Dialogue:
    messages: list[dict[str, Any]] = field(default_factory=list)
    media: list[MediaRef] = field(default_factory=list)

    @property
    def characters(self) -> int:
        return sum(len(part.get("text", "")) for message in self.messages for part in message["content"])


def translate(request: ChatRequest, limits: RequestLimits, defaults: Mapping[str, Any]) -> Translated:
    """Check a request and bring it into the pipeline's form.

    Args:
        request: the body.
        limits: what it may ask for.
        defaults: selection settings of the model's alias or of the server; the request's own count first.

    Raises:
        ApiError: 400, and the field that cannot be obeyed.
    """
    _refuse_unsupported(request)
    dialogue = _dialogue(request.messages)
    if len(dialogue.media) > limits.max_items:
        raise refuse("messages", f"messages hold {len(dialogue.media)} pictures and clips; at most {limits.max_items}")
    if (parts := sum(len(message["content"]) for message in dialogue.messages)) > MAX_PARTS:
        raise refuse("messages", f"messages hold {parts} parts; at most {MAX_PARTS}")
    if dialogue.characters > limits.max_text:
        raise refuse("messages", f"messages hold {dialogue.characters:,} characters; at most {limits.max_text:,}")
    count = request.max_completion_tokens or request.max_tokens
    if count is not None and count > limits.max_tokens:
        raise refuse("max_tokens", f"max_tokens must be at most {limits.max_tokens}, not {count}")
    settings = _selection(request, defaults)
    frames = settings.get("frames")
    if isinstance(frames, int) and frames > limits.max_frames:
        raise refuse("frames", f"frames must be at most {limits.max_frames}, not {frames}")
    options = request.stream_options
    try:
        return Translated(
            messages=dialogue.messages,
            media=dialogue.media,
            selection=SelectOptions(**settings),
            generation=_generation(request, count or min(limits.default_tokens, limits.max_tokens)),
            first_turn=None if request.rediprune.reselect else _first_turn(dialogue.messages),
            ignore_eos=bool(request.ignore_eos),
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            stream=bool(request.stream),
            include_usage=options is not None and options.include_usage,
            continuous_usage=options is not None and options.continuous_usage_stats,
            return_overlay=request.rediprune.return_overlay,
        )
    except RedipruneError as error:
        raise ApiError(400, str(error), param=str(error).split(" ", 1)[0], code="invalid_value") from error


async def fetch_media(media: list[MediaRef], policy: MediaPolicy) -> tuple[list[bytes], list[bytes]]:
    """Bytes of the pictures and of the clips, each in the order of the dialogue.

    Raises:
        ApiError: one is not allowed, not there, or too large.
    """
    data = await asyncio.gather(*(fetch(ref.url, policy, ref.param) for ref in media))
    pairs = list(zip(media, data, strict=True))
    return [d for ref, d in pairs if ref.kind == "image"], [d for ref, d in pairs if ref.kind == "video"]


def _refuse_unsupported(request: ChatRequest) -> None:
    if request.n not in (None, 1):
        raise refuse("n", "n must be 1: this server gives one answer per request")
    if request.logit_bias:
        raise refuse("logit_bias", "logit_bias is not supported; leave it out")
    for name, value in (request.model_extra or {}).items():
        if name in _NOT_OBEYED and value not in _NOT_OBEYED[name]:
            raise refuse(name, f"{name} is not supported; leave it out")
    if request.response_format is not None and request.response_format.type != "text":
        raise refuse("response_format", 'response_format must be {"type": "text"}; guided decoding is not supported')
    if request.tool_choice not in (None, "none", "auto"):
        raise refuse("tool_choice", 'tool_choice must be "none" or "auto": this server calls no tools')
    if isinstance(request.stop, list) and len(request.stop) > MAX_STOP:
        raise refuse("stop", f"stop takes at most {MAX_STOP} strings")
    if request.top_logprobs is not None:
        if not request.logprobs:
            raise refuse("top_logprobs", "top_logprobs needs logprobs: true")
        if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
            raise refuse("top_logprobs", f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}")
    if request.seed is not None and request.seed < 0:
        raise refuse("seed", "seed must be at least 0")


def _dialogue(messages: list[Message]) -> _Dialogue:
    """The messages in transformers' form, and their media in order."""
    dialogue = _Dialogue()
    for at, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        content = message.content or ""
        parts: list[dict[str, Any]] = []
        if isinstance(content, str):
            parts.append({"type": "text", "text": content})
        else:
            for number, part in enumerate(content):
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                    continue
                ref = _media(part, f"messages[{at}].content[{number}]")
                if role != "user":
                    raise refuse(ref.param, f"{ref.param}: only messages of the user can hold pictures and clips")
                dialogue.media.append(ref)
                parts.append({"type": ref.kind})
        dialogue.messages.append({"role": role, "content": parts})
    if dialogue.messages[-1]["role"] != "user":
        raise refuse("messages", "messages: the last must be the user's")
    if not any(part.get("text", "x").strip() for part in dialogue.messages[-1]["content"]):
        raise refuse("messages", "messages: the last is empty; ask a question")
    return dialogue


def _media(part: ImagePart | VideoPart | FilePart, param: str) -> MediaRef:
    if isinstance(part, FilePart):
        return MediaRef("video", part.file.file_data, f"{param}.file.file_data")
    kind = "image" if isinstance(part, ImagePart) else "video"
    given = part.image_url if isinstance(part, ImagePart) else part.video_url
    url = given.url if isinstance(given, MediaUrl) else given
    return MediaRef(kind, url, f"{param}.{kind}_url")


def _selection(request: ChatRequest, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Selection settings: the server's, then vLLM's two dictionaries, then the body's own fields."""
    settings = dict(defaults)
    for name, value in (request.mm_processor_kwargs or {}).items():
        if name in _SELECT:
            settings[name] = value
    video = (request.media_io_kwargs or {}).get("video") or {}
    if "num_frames" in video:
        settings["frames"] = video["num_frames"]
    settings |= {name: value for name in _SELECT if (value := getattr(request, name)) is not None}
    # JavaScript writes 1.0 as 1: it is the ratio, as in the alias name@1; a single token cannot be asked for here.
    if settings.get("keep") == 1 and not isinstance(settings["keep"], bool):
        settings["keep"] = 1.0
    return settings


def _generation(request: ChatRequest, max_new_tokens: int) -> GenerateOptions:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    top_k = None if request.top_k == -1 else request.top_k  # vLLM's way to say "all"
    greedy = request.temperature == 0
    return GenerateOptions(
        max_new_tokens=max_new_tokens,
        temperature=request.temperature,
        # Clients send these along with temperature 0; greedy decoding has no use for them.
        top_p=None if greedy else request.top_p,
        top_k=None if greedy else top_k,
        min_p=None if greedy else request.min_p,
        seed=None if greedy else request.seed,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        stop=tuple(stop),
    )


def _first_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dialogue up to the first message with a picture or clip; all of it where there is none."""
    for at, message in enumerate(messages):
        if any(part["type"] != "text" for part in message["content"]):
            return messages[: at + 1]
    return messages
