"""A real tokenizer for made checkpoints: byte pairs trained on a fixed text, the same on every machine."""

import json
from itertools import count, islice, product

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

_TEXT = """
USER: What is left of the red ball? ASSISTANT: A small brown dog is sitting left of the red ball.
USER: How many people are in the picture? ASSISTANT: There are three people in the picture, two women and
a man.
USER: What colour is the cup on the table? ASSISTANT: The cup is white, and the saucer under it is white
as well.
USER: Describe this image. ASSISTANT: The image shows a woman in an orange space suit, smiling at the
camera.
Behind her there is a flag and a model of the space shuttle. She has short hair and looks happy.
USER: What is the animal doing? ASSISTANT: The cat is looking to the left. Its fur is light brown with
dark stripes.
USER: What happens in this video? ASSISTANT: The camera moves slowly from the left to the right over the
photograph.
USER: Is the person in the video walking or running? ASSISTANT: The person is walking along the street
with a bag.
USER: Why is the man holding an umbrella? ASSISTANT: Because it is raining, he is holding an umbrella
over his head.
USER: Where was this photograph taken? ASSISTANT: It was probably taken in a kitchen, next to a large
window.
USER: What is written on the sign? ASSISTANT: The sign reads "stop", in white letters on a red
background.
USER: Which object is closest to the camera? ASSISTANT: The spoon is closest to the camera, then the
coffee cup.
USER: What will the child do next? ASSISTANT: The child will most likely pick up the ball and throw it to
the dog.
USER: Answer the question with a single word or phrase. Are there any cars? ASSISTANT: Yes.
USER: What time of day is it? ASSISTANT: It is early in the morning: the light is low, the shadows are
long and soft.
system: You are a helpful assistant. user: Tell me about the first frame, the second frame and the last
frame.
The first thing one would notice is that there is more than one way to see what has been shown in these
frames.
Which of these could have been made before the others? They were all made after this, each with its own
number.
0 1 2 3 4 5 6 7 8 9 10 11 12 20 24 30 36 48 50 60 64 72 80 90 100 128 144 256 336 576 1000 2026
"""

_SMOLVLM = (
    *("<image>", "<pad>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
_QWEN_VL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
SPECIAL = {  # from the end of the plain vocabulary on, in the order of the hub's checkpoints
    "llama": {"llava": ["<image>", "<pad>"], "llava_next": ["<image>", "<pad>"],
              "llava_next_video": ["<video>", "<image>", "<pad>"],
              "video_llava": ["<image>", "<video>", "<pad>"],
              "smolvlm": [*_SMOLVLM], "idefics3": [*_SMOLVLM]},
    "qwen2": {family: ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
              for family in ("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava")}
             | {"internvl": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
                **{family: [*_QWEN_VL] for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}},
}  # fmt: skip


# Special tokens that a family's processor finds by name.
NAMED = {
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
}


def sentencepiece(decoder: str) -> bool:
    """Whether a decoder's tokenizer is SentencePiece-like (Llama, Mistral); Qwen's are of bytes."""
    return decoder in ("llama", "mistral")


def make_tokenizer(decoder: str, family: str, words: int, context: int) -> PreTrainedTokenizerBase:
    """A tokenizer of the decoder's own class.

    Args:
        decoder: one of Llama's kind (SentencePiece-like with byte fallback, adds `<s>`) or of Qwen's (byte level).
        family: decides which special tokens follow the plain vocabulary; see `SPECIAL`.
        words: size of the plain vocabulary. What training on the text does not fill is filled with invented
            words, so that every id decodes to text.
        context: length of the model's context in tokens.

    Returns:
        Tokenizer of `words` entries and the special tokens.
    """
    special = SPECIAL["llama" if sentencepiece(decoder) else "qwen2"][family]
    if sentencepiece(decoder):
        control = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        pieces, merges = _train(pre_tokenizers.Metaspace(), [], words - len(control))
        vocabulary = _fill([*control, *pieces], "▁", words) + special
        tokenizer = LlamaTokenizer(_numbered(vocabulary), merges, add_bos_token=True, pad_token="<pad>")
    else:
        splitter = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
        pieces, merges = _train(splitter, pre_tokenizers.ByteLevel.alphabet(), words)
        vocabulary = _fill(pieces, "Ġ", words) + special
        named = NAMED.get(family, {})
        tokenizer = Qwen2Tokenizer(_numbered(vocabulary), merges, eos_token="<|im_end|>", extra_special_tokens=named)
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.model_max_length = context
    return tokenizer


def _train(splitter, alphabet: list[str], size: int) -> tuple[list[str], list]:
    """Pieces in the order of their ids, at most `size`, and the pairs of pieces merged to make them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [tuple(merge) for merge in model["merges"]]


def _fill(pieces: list[str], space: str, size: int) -> list[str]:
    """Pieces followed by invented words of two, three, … syllables until there are `size`."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    words = (space + "".join(word) for length in count(2) for word in product(syllables, repeat=length))
    known = set(pieces)
    return pieces + list(islice((word for word in words if word not in known), size - len(pieces)))


def _numbered(vocabulary: list[str]) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(vocabulary)}
