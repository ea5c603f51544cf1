"""From token ids to text as they come, cut at a stop string (`AnswerText`), at a cost per token that does not grow."""

import re
from collections.abc import Callable, Collection
from functools import partial

from .media.processor import Processor
from .stop_strings import StopMatch, StopStrings

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token that stands for one byte (SentencePiece's byte fallback)
_UNFINISHED = "\ufffd"  # what the bytes of a character decode to while some are missing


class Detokenizer:
    """Token ids one by one → the text that decoding all of them at once gives, without special tokens.

    Decoded is only a window: the tokens of the last piece, for context (a decoder may drop the space that opens a text,
    but not that of a later word), and the tokens since. `tokenizers.decoders.DecodeStream` does the same, but fails where
    a byte makes those before it invalid: here a run of byte tokens waits for its end.

    Args:
        decode: token ids → text, without special tokens.
        special: ids of the special tokens.
        byte_tokens: whether an id stands for a single byte.
        whole: decode everything at the end only, for a tokenizer that changes text which it gave before.

    Attributes:
        tail: text behind the certain one that may still change.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        special: Collection[int] = (),
        byte_token: Callable[[int], bool] = lambda token: False,
        whole: bool = False,
    ):
        self.decode, self.special = decode, special
        self._byte_token, self._whole = byte_token, whole
        self._context: list[int] = []
        self._context_text = ""
        self._open: list[int] = []  # tokens whose text may still change
        self.tail = ""

    @classmethod
    def for_processor(cls, processor: Processor) -> Callable[[], "Detokenizer"]:
        """What makes a detokenizer for each answer; the tokenizer's tables are read once."""
        tokenizer = processor.tokenizer
        if tokenizer.is_fast:
            special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        else:
            special = set(tokenizer.all_special_ids)

        def byte_token(token: int) -> bool:
            text = tokenizer.convert_ids_to_tokens(token)
            return isinstance(text, str) and _BYTE.fullmatch(text) is not None

        return partial(cls, processor.decode, special, byte_token, _cleans_up(tokenizer))

    def add(self, token: int) -> str:
        """The text that is certain by now and was not before; `tail` is the text behind it that may still change."""
        if token in self.special:
            return ""
        self._open.append(token)
        if self._whole:
            return ""
        window = self.decode(self._context + self._open)
        piece = window[len(self._context_text) :]
        if not piece or piece.endswith(_UNFINISHED) or self._byte_token(token):
            self.tail = piece
            return ""
        self._context, self._open, self.tail = self._open, [], ""
        self._context_text = self.decode(self._context)
        return piece

    def finish(self) -> str:
        """The rest of the text, once no token follows."""
        rest = self.decode(self._open) if self._whole else self.tail
        self._open, self.tail = [], ""
        return rest


class AnswerText:
    """The text of an answer, without leading space and up to a stop string.

    Attributes:
        stopped: whether a stop string ended it.
    """

    def __init__(self, detokenizer: Detokenizer, stop_strings: StopStrings):
        self._detokenizer, self._stop_strings = detokenizer, stop_strings
        self._ids: list[int] = []
        self._held = ""  # certain, but it may be the beginning of a stop string
        self._shown = 0
        self.stopped = False

    def add(self, token: int, last: bool) -> str:
        """The text that may be shown after this token; `last` if no other follows."""
        self._ids.append(token)
        match = self._stop_strings.add(token)
        if match is not None:
            self.stopped = True
            return self._before(match).lstrip()[self._shown :]
        held = self._held + self._detokenizer.add(token)
        whole = held + (self._detokenizer.finish() if last else self._detokenizer.tail)
        # A character is at least a byte: so many of them at the most may be a stop string's.
        end = len(whole) if last else min(len(held), max(0, len(whole) - self._stop_strings.held))
        piece = whole[:end]
        self._held = held[end:]
        if not self._shown:
            piece = piece.lstrip()
        self._shown += len(piece)
        return piece

    def _before(self, match: StopMatch) -> str:
        """The text before a stop string."""
        behind = match.behind.decode(errors="replace")  # the last token may end with half a character
        through = self._detokenizer.decode(self._ids)
        if through.endswith(behind):
            return through.removesuffix(behind)
        return self._detokenizer.decode(self._ids[: match.tokens]) + match.before.decode(errors="replace")


def _cleans_up(tokenizer: object) -> bool:
    """Whether decoding takes spaces away before punctuation, so that a token may change the text of those before it."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    if getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False):
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)  # transformers leaves BPE's text as it is
    return type(getattr(backend, "model", None)).__name__ != "BPE"
