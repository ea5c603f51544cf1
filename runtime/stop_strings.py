"""Where a stop string ends an answer: transformers' `StopStringCriteria`, token by token and without PyTorch.

Every token stands for bytes: those it adds to a text that goes on, so that the space which opens a word counts although
an answer that begins with it is shown without, and a special token for its own name although it is not shown. A stop
string is met where these bytes hold it, in whichever way they are cut into tokens, and the last token brings its end.
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

_PREFIX = "abcdef"  # a text that goes on, as transformers has it
_BYTE_TOKEN = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@dataclass(frozen=True)
class StopMatch:
    """Where the first stop string begins.

    Attributes:
        tokens: so many of the answer's tokens stand wholly before it.
        before: the bytes of the next token that do, if it is shown.
        behind: the bytes that are shown of the stop string and what came with its end.
    """

    tokens: int
    before: bytes
    behind: bytes


class TokenBytes:
    """Token id → the bytes that it adds to a text, None for one that the tokenizer does not know."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
        self._byte_fallback = "ByteFallback" in kinds
        self._byte_level = _byte_alphabet() if "ByteLevel" in kinds and not self._byte_fallback else {}
        self._base = tokenizer.convert_ids_to_tokens(tokenizer.encode(_PREFIX, add_special_tokens=False))
        self._base_text = tokenizer.convert_tokens_to_string(self._base)
        self._known: dict[int, bytes | None] = {}

    def __call__(self, token: int) -> bytes | None:
        if token not in self._known:
            self._known[token] = self._bytes(token)
        return self._known[token]

    def _bytes(self, token: int) -> bytes | None:
        name = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(name, str):
            return None
        if self._byte_level and all(character in self._byte_level for character in name):
            return bytes(self._byte_level[character] for character in name)
        if self._byte_fallback and (byte := _BYTE_TOKEN.get(name[:3] + name[3:5].upper() + name[5:])) is not None:
            return byte
        text = self._tokenizer.convert_tokens_to_string([*self._base, name])
        begin = text.index(_PREFIX) + len(_PREFIX) if _PREFIX in text else len(self._base_text)
        return text[begin:].encode()


class StopStrings:
    """The stop strings of one answer.

    Args:
        strings: not empty ones.
        token_bytes: as `TokenBytes`.
        special: tokens that are not shown.
        prompt: ids of the prompt: a stop string may begin there, if the answer ends it.
    """

    def __init__(
        self,
        strings: Sequence[str],
        token_bytes: Callable[[int], bytes | None],
        special: Collection[int] = (),
        prompt: Sequence[int] = (),
    ):
        self._strings = [string.encode() for string in strings]
        self._token_bytes, self._special = token_bytes, special
        self._reach = max(map(len, self._strings), default=0) - 1  # bytes behind which nothing can begin any more
        self._seen: deque[tuple[int, bytes, bool]] = deque()  # number of the token, its bytes, whether it is shown
        self._length = 0  # bytes in `_seen`
        self._count = 0
        for token in prompt[max(0, len(prompt) - self._reach) :] if self._strings else ():
            self._append(-1, token)

    def add(self, token: int) -> StopMatch | None:
        """The stop string that this token of the answer ends, the first if it ends several; None where it ends none."""
        self._count += 1
        if not self._strings:
            return None
        last = len(self._append(self._count - 1, token))
        text = self._text()
        before = len(text) - last
        found = [text.find(string, max(0, before - len(string) + 1)) for string in self._strings]
        begin = min((at for at in found if at >= 0), default=None)
        return None if begin is None else self._match(begin)

    @property
    def held(self) -> int:
        """At the end of what is shown so many bytes may be the beginning of a stop string."""
        text = self._text()
        sizes = (
            size
            for string in self._strings
            for size in range(min(len(string) - 1, len(text)), 0, -1)
            if text.endswith(string[:size])
        )
        size = max(sizes, default=0)
        shown = 0
        for _, piece, visible in reversed(self._seen):
            shown += min(size, len(piece)) if visible else 0
            size -= min(size, len(piece))
        return shown

    def _append(self, number: int, token: int) -> bytes:
        piece = self._token_bytes(token)
        if piece is None:  # nothing reaches across it
            self._seen.clear()
            self._length = 0
            return b""
        while self._seen and self._length - len(self._seen[0][1]) >= self._reach:
            self._length -= len(self._seen.popleft()[1])
        self._seen.append((number, piece, number >= 0 and token not in self._special))
        self._length += len(piece)
        return piece

    def _text(self) -> bytes:
        return b"".join(piece for _, piece, _ in self._seen)

    def _match(self, begin: int) -> StopMatch:
        pieces = list(self._seen)
        while begin >= len(pieces[0][1]):
            begin -= len(pieces.pop(0)[1])
        number, first, shown = pieces[0]
        behind = [first[begin:] if shown else b"", *(piece for _, piece, visible in pieces[1:] if visible)]
        return StopMatch(max(number, 0), first[:begin] if shown else b"", b"".join(behind))


def _decoder_kinds(decoder: Any) -> set[str]:
    """The types of a decoder of `tokenizers` and of its parts."""
    if decoder is None:
        return set()
    state = decoder.__getstate__() if hasattr(decoder, "__getstate__") else None
    try:
        parts = [json.loads(state)] if isinstance(state, (str, bytes)) else []
    except ValueError:
        parts = []
    kinds = {type(decoder).__name__}
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            kinds.add(str(part.get("type")))
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return kinds


def _byte_alphabet() -> dict[str, int]:
    """Character → byte, as byte-level BPE writes bytes (GPT-2's `bytes_to_unicode`)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
