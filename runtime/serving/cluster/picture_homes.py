"""Where requests about a picture go: to a replica that has its features, unless it has too much to do."""

import math
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import LRUCache

_REMEMBERED = 100_000  # pictures
_WINDOW = 600.0  # seconds in which it is counted how often a picture is asked about

Replica = TypeVar("Replica", bound=Hashable)


@dataclass
class _Picture(Generic[Replica]):
    """What is known of a picture.

    Attributes:
        homes: the replicas that have its features, the first one first.
        since: when counting began: with the last home that was added for its sake, or with the window.
        asked: how often it was asked about since then.
    """

    homes: list[Replica]
    since: float
    asked: int = 0


class PictureHomes(Generic[Replica]):
    """Which replicas have which pictures, and who answers the next request about one.

    A new picture goes where a hash ring points, past replicas that have their share under way: consistent hashing with
    bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350). There its features are, so there it stays.

    Pictures are asked about unequally often, and that alone leaves one replica short of work while another has a queue. So a
    picture gets a further home at the least busy replica once that has two batches less under way than the picture's own, or
    one batch less if the picture is asked about often, so that encoding it once more pays; from then on each of its requests
    goes to the home with less. A picture that is no longer asked about often goes back to its first home.

    Args:
        batch: requests that a replica decodes together.
        clock: seconds that only grow.
    """

    def __init__(self, batch: int, clock: Callable[[], float] = time.monotonic):
        self._batch, self._often, self._clock = batch, 2 * batch, clock
        self._pictures: LRUCache[str, _Picture[Replica]] = LRUCache(_REMEMBERED)

    def ranked(
        self,
        key: str | None,
        ring: Sequence[Replica],
        replicas: Collection[Replica],
        under_way: Callable[[Replica], int],
    ) -> list[Replica]:
        """The replicas to try, best first. May be called again for a request that none of them took.

        Args:
            key: of the picture; None where there is none.
            ring: the first few replicas from where the ring points to; at least one.
            replicas: all that live.
            under_way: requests under way at a replica.
        """
        by_load = sorted(ring, key=under_way)  # equal loads in the ring's order
        if key is None:
            return by_load
        homes = self._homes(key, ring, replicas, under_way)
        return [*homes, *(each for each in by_load if each not in homes)]

    def took(self, key: str | None, replica: Replica) -> None:
        """A replica accepted a request: it has the picture's features now, if it had not."""
        picture = self._pictures.get(key) if key is not None else None
        if picture is not None:
            picture.asked += 1
            if replica not in picture.homes:
                picture.homes.append(replica)

    def _homes(
        self, key: str, ring: Sequence[Replica], replicas: Collection[Replica], under_way: Callable[[Replica], int]
    ) -> list[Replica]:
        """The living homes of a picture, that with least under way first."""
        now, picture = self._clock(), self._pictures.get(key)
        if picture is not None:
            picture.homes = [each for each in picture.homes if each in replicas]
        if picture is None or not picture.homes:
            share = math.ceil((sum(under_way(each) for each in replicas) + 1) / len(replicas))
            home = next(each for each in (*ring, *replicas) if under_way(each) < share)  # not all have their share
            self._pictures[key] = _Picture([home], now)
            return [home]
        if now - picture.since > _WINDOW:
            if picture.asked < self._often:
                del picture.homes[1:]
            picture.asked, picture.since = 0, now
        homes = sorted(picture.homes, key=under_way)
        if under_way(homes[0]) >= self._batch:
            least_busy = min((*ring, *replicas), key=under_way)
            gap = under_way(homes[0]) - under_way(least_busy)
            if gap >= 2 * self._batch or (gap >= self._batch and picture.asked >= self._often):
                picture.homes.append(least_busy)
                picture.asked, picture.since = 0, now
                return [least_busy, *homes]
        return homes
