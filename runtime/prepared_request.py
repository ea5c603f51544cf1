"""A request whose prompt is encoded: what is left is to generate its tokens."""

from collections.abc import Collection
from dataclasses import dataclass

from .answer import Answer
from .detokenize import AnswerText
from .generate import Sampling
from .prompt_encoder import PromptEmbeds


@dataclass(frozen=True)
class PreparedRequest:
    """What `Pipeline.prepare` gives, for whoever runs the language stage: the pipeline itself, or a server's scheduler.

    Attributes:
        prompt: as the decoder reads it.
        answer: with what is known before the first token.
        sampling: how a token is chosen.
        text: makes text of the tokens.
        stop_ids: tokens that end the answer.
        max_new_tokens: it ends after so many at the latest.
        intervals: when its stages ran (`StageClock.intervals`).
    """

    prompt: PromptEmbeds
    answer: Answer
    sampling: Sampling
    text: AnswerText
    stop_ids: Collection[int]
    max_new_tokens: int
    intervals: list[tuple[str, float, float]]

    @property
    def kept_by_kind(self) -> dict[str, int]:
        """Kept visual tokens, "image" and "video" apart; newlines between tiles are not among them."""
        kept = {"image": 0, "video": 0}
        for visual in self.prompt.visuals:
            kept[visual.kind] += visual.kept.size
        return kept
