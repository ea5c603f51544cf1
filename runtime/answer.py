"""An answer, and the stream of its text."""

from collections.abc import Collection, Generator
from dataclasses import dataclass, field

from .detokenize import AnswerText
from .memory import peak_memory
from .timing import Stopwatch
from .visual_tokens import Kept, Visual


@dataclass
class Answer:
    """An answer and what it took.

    Attributes:
        text: the answer, without special tokens and leading space, up to a stop string.
        token_ids: generated ids, the stop token included.
        kept: for each image or video [F, K] indices of the kept tokens; where frames keep different numbers (scope "clip",
            keep "auto") a list with the indices of each frame.
        timings: seconds: preprocess, vision, select, project, embed, prefill, time_to_first_token, decode, total. What
            the reader of a stream does between its pieces does not count.
        prompt_tokens: text tokens of the prompt.
        visual_tokens, kept_tokens: visual tokens before and after pruning.
        encoded_frames: pictures, tiles and frames that went through the vision tower; others were known.
        finish_reason: "stop" (stop token or string) or "length".
        peak_memory: bytes, the process's largest resident size so far.
        warnings: what a reader of the answer must know, a line each: what of a video is damaged, and which form prompts
            take where the checkpoint has no chat template.
        visuals: the images and videos with their features, where `return_visuals` asked for them; they may lie on the
            GPU and live as long as the answer.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    kept_tokens: int = 0
    encoded_frames: int = 0
    finish_reason: str = "length"
    peak_memory: int = 0
    warnings: list[str] = field(default_factory=list)
    visuals: list[Visual] = field(default_factory=list, repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second, the first not counted (it comes from the prefill)."""
        return (len(self.token_ids) - 1) / self.timings["decode"] if self.timings.get("decode") else 0.0


class Stream:
    """Text pieces of an answer as they come; `answer` is complete once they are exhausted.

    One thread reads it. One that is not read to its end frees its KV cache with `close`, or when it is dropped.

    Args:
        answer: with what is known before the first token; it becomes the stream's.
        tokens: the token ids, without end.
        text: makes text of them.
        stop_ids: tokens that end the answer.
        max_new_tokens: it ends after so many at the latest.
        watch: has run since the request came.
    """

    def __init__(
        self,
        answer: Answer,
        tokens: Generator[int, None, None],
        text: AnswerText,
        stop_ids: Collection[int],
        max_new_tokens: int,
        watch: Stopwatch,
    ):
        self.answer = answer
        self._tokens, self._text = tokens, text
        self._stop_ids, self._max_new_tokens = stop_ids, max_new_tokens
        self._watch = watch
        self._watch.pause()
        self._ended = False

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> str:
        self._watch.resume()
        try:
            while not self._ended:
                if piece := self._advance():
                    return piece
            raise StopIteration
        finally:
            self._watch.pause()

    def close(self) -> None:
        """Generate no further token, and free the KV cache."""
        self._tokens.close()
        self._ended = True

    def _advance(self) -> str:
        """The text that one more token makes certain; none while it is not."""
        answer = self.answer
        token = next(self._tokens)
        answer.token_ids.append(token)
        if len(answer.token_ids) == 1:
            answer.timings["time_to_first_token"] = self._watch.seconds
        stop_token = token in self._stop_ids
        last = stop_token or len(answer.token_ids) == self._max_new_tokens
        piece = self._text.add(token, last)
        answer.text += piece
        if last or self._text.stopped:
            self.close()
            answer.finish_reason = "stop" if stop_token or self._text.stopped else "length"
            answer.timings["decode"] = self._watch.seconds - answer.timings["time_to_first_token"]
            answer.timings["total"] = self._watch.seconds
            answer.peak_memory = peak_memory()
        return piece
