"""Features of pictures seen before, so that a second question about one does not encode it again."""

from collections.abc import Callable
from threading import Condition

from cachetools import LRUCache

from .backends.arrays import Array

Key = tuple[str, str]  # what encoded it, hash of the picture's content


class FeatureCache:
    """Features by picture content. The least recently used go when `limit` bytes are exceeded, on host and GPU together.

    May be shared between threads: a picture that several ask about at once is encoded by one of them.
    """

    def __init__(self, limit: int):
        self._entries: LRUCache[Key, Array] = LRUCache(limit, getsizeof=lambda features: features.nbytes)
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

    def get(self, key: Key) -> Array | None:
        """Features [F, P, C] of a picture, or None where they are not held."""
        with self._changed:
            return self._entries.get(key)

    def put(self, key: Key, features: Array) -> None:
        """Hold features [F, P, C], unless they alone exceed the limit or are held already."""
        with self._changed:
            if features.nbytes <= self.limit and key not in self._entries:
                self._entries[key] = features

    def get_or_encode(self, key: Key, encode: Callable[[], Array]) -> tuple[Array, bool]:
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
