"""Where requests about a picture go: to a replica that has its features, and evenly over all of them."""

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Generic, TypeVar

from cachetools import LRUCache

_REMEMBERED = 100_000  # pictures

Replica = TypeVar("Replica", bound=Hashable)


class _Picture(Generic[Replica]):
    """The replicas that have a picture's features, and how often it was asked about since the last of them was added."""

    def __init__(self, home: Replica):
        self.homes, self.asked = [home], 0


class PictureHomes(Generic[Replica]):
    """Which replicas have which pictures, and who answers the next request about one.

    A new picture goes where a hash ring points, past replicas that have their share under way: consistent hashing with
    bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350). There its features are, so there it stays.

    Pictures are asked about unequally often, and that alone leaves one replica short of work while another has a queue. So a
    picture that is asked about often gets a further home at the least busy replica, once that has a batch less under way than
    the picture's own; from then on each of its requests goes to the home with less. One more encoding evens out all that
    follows. Pictures that are seldom asked about stay where they are: encoding them again would cost more than it gains.

    Args:
        batch: requests that a replica decodes together.
    """

    def __init__(self, batch: int):
        self._gap, self._often = batch, 2 * batch
        self._pictures: LRUCache[str, _Picture[Replica]] = LRUCache(_REMEMBERED)

    def ranked(
        self,
        key: str | None,
        ring: Sequence[Replica],
        replicas: Collection[Replica],
        under_way: Callable[[Replica], int],
    ) -> list[Replica]:
        """The replicas to try, best first.

        Args:
            key: of the picture; None where there is none.
            ring: the first few replicas from where the ring points to; at least one.
            replicas: all that live.
            under_way: requests under way at a replica.
        """
        by_load = sorted(ring, key=under_way)  # equal loads in the ring's order
        if key is None:
            return by_load
        home = self._home(key, ring, replicas, under_way)
        return [home, *(each for each in by_load if each != home)]

    def _home(
        self, key: str, ring: Sequence[Replica], replicas: Collection[Replica], under_way: Callable[[Replica], int]
    ) -> Replica:
        picture = self._pictures.get(key)
        homes = [] if picture is None else [each for each in picture.homes if each in replicas]
        if picture is None or not homes:
            share = math.ceil((sum(under_way(each) for each in replicas) + 1) / len(replicas))
            # The least busy of all has less than the mean.
            home = next(each for each in (*ring, *replicas) if under_way(each) < share)
            self._pictures[key] = _Picture(home)
            return home
        picture.asked += 1
        home = min(homes, key=under_way)
        if picture.asked >= self._often and under_way(home) >= self._gap:
            least_busy = min((*ring, *replicas), key=under_way)
            if under_way(home) - under_way(least_busy) >= self._gap:
                picture.homes, picture.asked = [*homes, least_busy], 0
                return least_busy
        return home
