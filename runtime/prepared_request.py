"""A request whose prompt is encoded: what is left is to generate its tokens."""

from collections.abc import Collection
from dataclasses import dataclass

from .answer import Answer
from .detokenize import AnswerText, Detokenizer
from .media.processor import Processor
from .options import GenerateOptions
from .prompt_encoder import PromptEmbeds
from .sampling import Sampling, Stopping
from .stop_strings import StopStrings, TokenBytes


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
        unpruned: positions that the prompt would take with every visual token, where `prompt` came without its pictures.
    """

    prompt: PromptEmbeds
    answer: Answer
    sampling: Sampling
    text: AnswerText
    stop_ids: Collection[int]
    max_new_tokens: int
    intervals: list[tuple[str, float, float]]
    unpruned: int | None = None

    @property
    def unpruned_length(self) -> int:
        """Positions that the prompt would take with every visual token."""
        return self.prompt.unpruned_length if self.unpruned is None else self.unpruned

    @property
    def kept_by_kind(self) -> dict[str, int]:
        """Kept visual tokens, "image" and "video" apart; newlines between tiles are not among them."""
        kept = {"image": 0, "video": 0}
        for visual in self.prompt.visuals:
            kept[visual.kind] += len(visual.slots)
        return kept


def prepared_of(
    processor: Processor,
    text_of: tuple[Detokenizer, TokenBytes],
    prompt: PromptEmbeds,
    generation: GenerateOptions,
    answer: Answer,
    intervals: list[tuple[str, float, float]],
    unpruned: int | None = None,
) -> PreparedRequest:
    """A request of its encoded prompt and the settings of its answer.

    Args:
        processor: the bundle's.
        text_of: what makes text of tokens, for this request alone, and the bytes of its tokenizer's tokens.
        prompt, answer, intervals, unpruned: as `PreparedRequest` has them.
        generation: how the answer is generated.

    Raises:
        RedipruneError: a bad setting.
    """
    stopping = Stopping(processor.generation, processor.tokenizer.eos_token_id, generation.stop)
    sampling = Sampling.from_config(processor.generation, stopping.ids, **generation.sampling)
    detokenizer, token_bytes = text_of
    text = AnswerText(detokenizer, StopStrings(stopping.strings, token_bytes, detokenizer.special, prompt.ids))
    return PreparedRequest(prompt, answer, sampling, text, stopping.ids, generation.max_new_tokens, intervals, unpruned)
