"""How a server runs."""

from dataclasses import dataclass, field

from .media_fetch import MediaPolicy
from .translate import RequestLimits


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
