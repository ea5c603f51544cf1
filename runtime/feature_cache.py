"""Features of pictures seen before, so that a second question about one does not encode it again."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition

from cachetools import LRUCache

from .backends.arrays import Array

Key = tuple[str, str]  # what encoded it, hash of the picture's content


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a vision stage made of a picture or a video.

    Attributes:
        features: [F, P, C].
        rows: [F, …], what `project` takes kept tokens from, where it is not the features themselves.
    """

    features: Array
    rows: Array | None = None

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + (0 if self.rows is None else self.rows.nbytes)


class FeatureCache:
    """Features by picture content. The least recently used go when `limit` bytes are exceeded, on host and GPU together.

    May be shared between threads: a picture that several ask about at once is encoded by one of them.
    """

    def __init__(self, limit: int):
        self._entries: LRUCache[Key, Encoded] = LRUCache(limit, getsizeof=lambda encoded: encoded.nbytes)
        self._encoding: set[Key] = set()
        self._changed = Condition()  # guards both

    @property
    def limit(self) -> int:
        """Bytes at most."""
        return int(self._entries.maxsize)

    @property
    def size(self) -> int:
        """Bytes held."""
        return int(self._entries.currsize)

    def get(self, key: Key) -> Encoded | None:
        """Features [F, P, C] of a picture, or None where they are not held."""
        with self._changed:
            return self._entries.get(key)

    def put(self, key: Key, features: Encoded) -> None:
        """Hold features [F, P, C], unless they alone exceed the limit or are held already."""
        with self._changed:
            if features.nbytes <= self.limit and key not in self._entries:
                self._entries[key] = features

    def get_or_encode(self, key: Key, encode: Callable[[], Encoded]) -> tuple[Encoded, bool]:
        """Features [F, P, C] of a picture: those held, or what `encode` makes of it.

        While one thread encodes a picture, others that ask for it wait. Should it fail, the next of them tries.

        Returns:
            The features, and whether this call encoded them.
        """
        with self._changed:
            self._changed.wait_for(lambda: key not in self._encoding)
            held = self._entries.get(key)
            if held is not None:
                return held, False
            self._encoding.add(key)
        try:
            features = encode()
            self.put(key, features)
        finally:
            with self._changed:
                self._encoding.discard(key)
                self._changed.notify_all()
        return features, True
