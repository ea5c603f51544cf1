"""A tokenizer of each kind, as a processor has it."""

from functools import cache
from pathlib import Path
from typing import Any

from rediprune.export.checkpoint.made_tokenizer import make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = 700
_DEMO = Path(__file__).parents[2] / "export" / "demo" / "checkpoint"


def _metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece's unigram: ▁ opens a word, and the first of a text loses its space."""
    pieces = ["<unk>", "▁", "▁a", "▁red", "ball", "s", ".", "▁2", "é", "你", "abcdef"]
    model = models.Unigram([(piece, -1.0 - at) for at, piece in enumerate(pieces)], unk_id=0)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.add_tokens(["<box>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _word_piece() -> PreTrainedTokenizerFast:
    """BERT's: spaces between words, which transformers takes away again before punctuation."""
    pieces = ["[UNK]", "[SEP]", "red", "ball", "##s", ".", ",", "'", "s", "n't", "do", "?", "ve", "abcdef"]
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token="[SEP]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


def _byte_level() -> Any:
    tokenizer = make_tokenizer("qwen2", "llava", WORDS, 1000)
    tokenizer.add_tokens(["<box>", " 你"])
    return tokenizer


TOKENIZERS = {
    "llama": lambda: make_tokenizer("llama", "llava", WORDS, 1000),  # byte fallback
    "qwen2": _byte_level,
    "unigram": _metaspace,
    "wordpiece": _word_piece,
    "demo": lambda: AutoTokenizer.from_pretrained(_DEMO),
}


class TokenizerCase:
    """A tokenizer and how many ids it has."""

    def __init__(self, name: str):
        self.tokenizer = TOKENIZERS[name]()
        self.size = len(self.tokenizer)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def spell(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


@cache
def tokenizer_case(name: str) -> TokenizerCase:
    return TokenizerCase(name)
