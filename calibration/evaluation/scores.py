"""What a bundle answered to a set of questions, and how good that is."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What a bundle said to one question, and what it took.

    Attributes:
        answer: the text.
        right: whether it is correct.
        kept_tokens, visual_tokens: visual tokens after and before pruning.
        first_token: seconds to the first token, as for an image that was not seen before: preprocessing and vision count.
        prefill_macs: multiply-adds of the decoder's prefill.
        token_ids: of the answer.
        select: seconds that the choice of tokens took.
    """

    answer: str
    right: bool
    kept_tokens: int
    visual_tokens: int
    first_token: float
    prefill_macs: float
    token_ids: list[int] = field(default_factory=list)
    select: float = 0.0


@dataclass
class Score:
    """The replies of a bundle to a set of questions, with one backend, rule and keep ratio.

    Attributes:
        data: name of the set.
        backend: what ran the stages.
        rule: the selection rule, of `selection_rules.RULES`.
        keep: the keep ratio.
        kinds: of the questions.
        replies: in the questions' order.
    """

    data: str
    backend: str
    rule: str
    keep: float
    kinds: list[str]
    replies: list[Reply] = field(repr=False)

    @property
    def asked(self) -> dict[str, int]:
        """Number of questions by kind."""
        return dict(Counter(self.kinds))

    @property
    def right(self) -> dict[str, int]:
        """Number of correct answers by kind."""
        return {
            kind: sum(r.right for r, k in zip(self.replies, self.kinds, strict=True) if k == kind)
            for kind in self.asked
        }

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return statistics.fmean(reply.right for reply in self.replies)

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson)."""
        return wilson(sum(reply.right for reply in self.replies), len(self.replies))

    @property
    def visual_tokens(self) -> float:
        """Visual tokens after pruning, the mean."""
        return statistics.fmean(reply.kept_tokens for reply in self.replies)

    @property
    def all_tokens(self) -> float:
        """Visual tokens before pruning, the mean."""
        return statistics.fmean(reply.visual_tokens for reply in self.replies)

    @property
    def first_token(self) -> float:
        """Seconds to the first token, the median."""
        return statistics.median(reply.first_token for reply in self.replies)

    @property
    def select(self) -> float:
        """Seconds that the choice of tokens takes, the median."""
        return statistics.median(reply.select for reply in self.replies)

    @property
    def prefill_macs(self) -> float:
        """Multiply-adds of the decoder's prefill, the mean."""
        return statistics.fmean(reply.prefill_macs for reply in self.replies)

    def same_answers(self, other: "Score") -> int:
        """How many questions two scores of the same set answer alike, word for word."""
        return sum(a.answer == b.answer for a, b in zip(self.replies, other.replies, strict=True))

    def same_ids(self, other: "Score") -> float:
        """Share of an answer's token ids before it first differs from another score's, the mean over all questions."""
        shares = []
        for a, b in zip(self.replies, other.replies, strict=True):
            shares.append(tokens_alike(a.token_ids, b.token_ids) / max(len(a.token_ids), len(b.token_ids), 1))
        return statistics.fmean(shares)

    def document(self) -> dict[str, Any]:
        """The score without its replies, for JSON."""
        numbers = ("right", "asked", "accuracy", "visual_tokens", "all_tokens", "first_token", "select", "prefill_macs")
        named = {"data": self.data, "backend": self.backend, "rule": self.rule, "keep": self.keep}
        return named | {name: getattr(self, name) for name in numbers} | {"interval": self.interval()}


def tokens_alike(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many token ids two answers begin with alike."""
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (our, their) in enumerate(pairs) if our != their), min(len(ours), len(theirs)))


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        right: successes.
        asked: trials, at least 1.
        z: quantile of the normal distribution; the default is that of 95 %.
    """
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * (share * (1 - share) / asked + z * z / (4 * asked * asked)) ** 0.5
    scale = 1 + z * z / asked
    return (centre - spread) / scale, (centre + spread) / scale


def paired_change(lost: int, gained: int, asked: int) -> tuple[float, float]:
    """Change of accuracy on the same questions, and half its 95 % interval (Wald's for paired proportions).

    Args:
        lost, gained: questions answered correctly before and not after, and the other way round.
        asked: all of them.
    """
    change = (gained - lost) / asked
    return change, 1.959964 * math.sqrt(max(0.0, lost + gained - (gained - lost) ** 2 / asked)) / asked
