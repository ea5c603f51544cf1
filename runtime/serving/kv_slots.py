"""Who has which slot of the KV cache, within a budget of positions; and caches kept of answers that ended.

Slots in use stand in front, so that they are decoded as one batch. Behind them lie the caches of answers that ended: a later
prompt that begins with the same embeddings takes one up instead of computing its beginning again.
"""

from dataclasses import dataclass, field

import numpy as np

from ..backends.batching import BatchDecoding

_GRANULE = 256  # a slot's length grows by so many positions
# ONNX Runtime's attention sums a single token in another order than several, as which a prompt is computed on its own: so
# many tokens are never computed alone, or an answer would depend on what the cache held.
ALONE = 1
MIN_PREFIX = 16  # a shorter beginning is computed again sooner than its cache is moved


@dataclass(eq=False)
class Slot:
    """A slot's contents: what was written to it, as embeddings [n, D] and their positions [A, n]."""

    rows: list[np.ndarray] = field(default_factory=list)  # each [S, D]
    positions: list[np.ndarray] = field(default_factory=list)  # each [A, S]
    used: int = 0

    def wrote(self, embeds: np.ndarray, positions: np.ndarray) -> None:
        """Note that embeds [S, D] at positions [A, S] were appended."""
        self.rows.append(embeds)
        self.positions.append(positions)
        self.used += len(embeds)

    def common(self, embeds: np.ndarray, positions: np.ndarray) -> int:
        """How many tokens begin like embeds [S, D] at positions [A, S].

        The last of a prompt must be computed anyway, for its logits, and not alone (`ALONE`).
        """
        most = min(self.used, len(embeds) - ALONE - 1)
        at = 0
        for row, place in zip(self.rows, self.positions, strict=True):
            size = min(len(row), most - at)
            if size <= 0 or row.shape[1] != embeds.shape[1]:  # with and without embeddings for the first layers
                break
            equal = (row[:size] == embeds[at : at + size]).all(axis=1)
            equal &= (place[:, :size] == positions[:, at : at + size]).all(axis=0)
            at += size if equal.all() else int(equal.argmin())
            if not equal.all():
                break
        return at


class KVSlots:
    """Slots of a `BatchDecoding`, given and taken.

    Args:
        decoding: the cache.
        max_slots: requests at most.
        max_positions: positions at most, over all slots.
    """

    def __init__(self, decoding: BatchDecoding, max_slots: int, max_positions: int):
        self.decoding, self.max_positions = decoding, max_positions
        self.max_slots = min(max_slots, decoding.slots or max_slots)
        self._slots: list[Slot | None] = [None] * decoding.slots
        self.busy = 0

    @property
    def positions_in_use(self) -> int:
        return sum(slot.used for slot in self._slots[: self.busy] if slot)

    def index(self, slot: Slot) -> int:
        """Where a slot in use stands now."""
        return next(at for at, other in enumerate(self._slots) if other is slot)

    def fits(self, length: int) -> bool:
        """Whether a request of so many positions could ever get a slot."""
        return length <= self.max_positions

    def acquire(self, length: int, embeds: np.ndarray, positions: np.ndarray) -> Slot | None:
        """A slot for a prompt embeds [S, D] at positions [A, S] that takes `length` places with its answer.

        None while there is none.

        `Slot.used` positions of it hold the prompt's beginning already.
        """
        if not self._make_room(length):
            return None
        found, most = None, MIN_PREFIX - 1
        for slot in self._slots[self.busy :]:
            if slot is not None and (common := slot.common(embeds, positions)) > most:
                found, most = slot, common
        target = self.busy
        if found is None:
            self._vacate(target)
            slot = Slot()
            self._slots[target] = slot
        else:
            self._exchange(self.index(found), target)
            slot = Slot([embeds[:most]], [positions[:, :most]], most)  # what it holds beyond is written over
            self._slots[target] = slot
        self.busy += 1
        return slot

    def release(self, slot: Slot, keep: bool, ready: int) -> None:
        """Give a slot back.

        Args:
            slot: in use.
            keep: its cache may be taken up by a prompt that begins alike.
            ready: of the slots in use the first so many are decoded together, and stay in front.
        """
        at = self.index(slot)
        if not (keep and self.decoding.rewinds):
            self._slots[at] = None
        if at < ready:
            self._exchange(at, ready - 1)
            at = ready - 1
        self._exchange(at, self.busy - 1)
        self.busy -= 1

    def clear(self) -> None:
        """Take every slot from who has it, and forget what they hold."""
        self.decoding.resize(0, 0, 0)
        self._slots = [None] * self.decoding.slots
        self.busy = 0

    def _make_room(self, length: int) -> bool:
        """Whether one more slot, of so many positions at least, is within the budget; the cache is resized for it."""
        decoding, needed = self.decoding, self._rounded(length)
        longest = max(decoding.length, needed)
        slots = min(self.max_slots, self.max_positions // longest)
        if self.busy == 0 and (slots == 0 or longest > 4 * needed):  # nothing else needs it so long
            longest = needed
            slots = min(self.max_slots, self.max_positions // longest)
        if self.busy + 1 > slots:
            return False
        if longest != decoding.length or slots != decoding.slots:
            staying = self._slots[:slots] + [None] * (slots - len(self._slots))
            self._slots = [slot if slot and slot.used <= longest else None for slot in staying]
            decoding.resize(slots, longest, max((slot.used for slot in self._slots if slot), default=0))
        return True

    def _vacate(self, target: int) -> None:
        """Free a slot behind those in use; a kept cache there moves to a free one, or over the one kept longest."""
        if self._slots[target] is None:
            return
        free = [at for at in range(self.busy, len(self._slots)) if self._slots[at] is None]
        if free:
            self._exchange(target, free[0])
        else:
            self._slots[target] = None

    def _exchange(self, one: int, other: int) -> None:
        """Exchange what two slots hold."""
        first, second = self._slots[one], self._slots[other]
        if one != other:
            if first is not None and second is not None:
                self.decoding.swap(one, other, max(first.used, second.used))
            elif first is not None:
                self.decoding.move(one, other, first.used)
            elif second is not None:
                self.decoding.move(other, one, second.used)
        self._slots[one], self._slots[other] = second, first

    def _rounded(self, length: int) -> int:
        return min(-(-length // _GRANULE) * _GRANULE, max(length, self.max_positions))
