"""How a server runs, and the limits of a request: items, frames, tokens, text, body, time.

Pixels and packets are limited by `media.limits`, one item's encoded size by `media_fetch`, counts of the protocol by
`protocol`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from .media_fetch import MediaPolicy


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    Attributes:
        max_items: pictures and clips.
        max_frames: of one clip.
        max_tokens: of an answer, also where a request names no number.
        default_tokens: of an answer where a request names no number.
        max_text: characters of all messages; encoding more would take seconds, only to find that there are too many tokens.
    """

    # For each position of a model: a longer text does not fit, as a token has four characters on average.
    CHARACTERS_PER_POSITION: ClassVar[int] = 32

    max_items: int = 16
    max_frames: int = 64
    max_tokens: int = 4096
    default_tokens: int = 256
    max_text: int = 1_000_000

    def of_model(self, positions: int) -> "RequestLimits":
        """The limits for a model with so many positions."""
        return replace(self, max_text=min(self.max_text, self.CHARACTERS_PER_POSITION * positions))


@dataclass(frozen=True)
class ServeSettings:
    """How a server runs.

    Attributes:
        api_key: what clients must send, as a bearer token; None: anybody may ask.
        allowed_hosts: names in the Host header that are answered; empty: every name. A server on loopback answers loopback
            names only, or a web page could reach it by a name of its own (DNS rebinding).
        media: where pictures and clips may come from.
        limits: what one request may ask for.
        max_body_bytes: of a request.
        max_pending_bytes: of all requests that are being read and encoded; one more is answered 429.
        max_batch: requests decoded together at most.
        cache_memory: bytes of the KV cache, for each model.
        max_waiting: requests that wait for a slot at most, for each model; one more is answered 429.
        prefill_chunk: prompt tokens that are computed before the answers under way get their next token.
        encoders: prompts that are encoded at the same time; 0 is one for every four cores, up to four.
        timeout: seconds that a request may take.
    """

    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    media: MediaPolicy = field(default_factory=MediaPolicy)
    limits: RequestLimits = field(default_factory=RequestLimits)
    max_body_bytes: int = 256 << 20
    max_pending_bytes: int = 1 << 30
    max_batch: int = 8
    cache_memory: int = 1 << 30
    max_waiting: int = 64
    prefill_chunk: int = 256
    encoders: int = 0
    timeout: float = 300.0
