"""From pictures and dialogue to pixel values and token ids, as the checkpoint's own processor files say."""

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..chat_template import ChatTemplate, check_messages, find_template, render_messages
from ..errors import RedipruneError
from ..generation_config import read_generation_config, read_json_object
from ..generation_settings import check_forms
from .expansion import Expand, expansion_of
from .image_processors import first_line, frame_processor, image_processor, processor_class_of
from .images import image_key, load_image
from .processor_forms import check_processor_forms
from .qwen_pictures import QwenForm, QwenPictures
from .split_pictures import SplitPictures
from .tiles import Layout, anyres_layout, ended_layout
from .transformers_classes import transformers_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Processor", "image_key", "load_image"]

# Put behind the first character of a placeholder that is only text (see `prompt.render_prompt`), a code point that
# Unicode sets aside for such uses; `Processor.encode` takes it out again.
LITERAL = "\ufdd0"


@dataclass
class Processor:
    """A checkpoint's tokenizer, chat template, picture and video settings."""

    tokenizer: "PreTrainedTokenizerBase"
    images: Any  # a PilBackend of transformers, its settings as attributes
    videos: Any  # likewise
    chat_template: ChatTemplate
    patch: int  # side of a patch in pixels
    image_token: str
    video_token: str
    frames: int | None  # how many frames of a video the checkpoint asks for
    expansion: Expand  # of a placeholder
    qwen: QwenPictures | None = None  # where pictures have any size
    split: SplitPictures | None = None  # SmolVLM: how pictures are cut
    most_tiles: int | None = None  # LLaVA-OneVision: a picture of more is scaled down behind the projector
    whole: bool = False  # pictures are not cut into tiles
    generation: dict[str, Any] = field(default_factory=dict)  # as `read_generation_config` gives it

    @classmethod
    def load(cls, folder: str | Path) -> "Processor":
        """Read the processor files of a checkpoint or of a bundle's `processor/`.

        Raises:
            RedipruneError: a file is missing or no JSON, or names a processor that is not known here.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RedipruneError(f"there is no folder {folder}")
        names = ("processor_config.json", "config.json", "chat_template.json", "tokenizer_config.json")
        documents = {name: read_json_object(folder / name) or {} for name in names}
        processor, config = documents["processor_config.json"], documents["config.json"]
        images = processor.get("image_processor") or read_json_object(folder / "preprocessor_config.json")
        if not images:
            raise RedipruneError(f"{folder} has no preprocessor_config.json: copy it there from the checkpoint")
        videos = processor.get("video_processor") or read_json_object(folder / "video_preprocessor_config.json")
        for name, found in (("image processor", images), ("video processor", videos or {})):
            if not isinstance(found, dict):
                raise RedipruneError(f"the settings of the {name} in {folder} are no JSON object: copy them anew")
        named = processor_class_of(images, processor)
        if named is None:
            raise RedipruneError(f"{folder}/preprocessor_config.json names no image_processor_type: add it")
        if "image_grid_pinpoints" in config and "image_grid_pinpoints" not in images:
            images = images | {"image_grid_pinpoints": config["image_grid_pinpoints"]}
        vision = config.get("vision_config")
        vision = vision if isinstance(vision, dict) else {}
        tokenizer = _load_tokenizer(folder)
        pictures = image_processor(named, images)
        form = QwenForm.of(str(config.get("model_type")), vision)
        qwen = None if form is None else QwenPictures.of(form, pictures, videos or images)
        split = SplitPictures.of(str(config.get("model_type")), pictures, tokenizer)
        usual = ("<|image_pad|>", "<|video_pad|>") if qwen else ("<image>", "<video>")
        image_token = getattr(tokenizer, "context_image_token", None) or processor.get("image_token", usual[0])
        video_token = processor.get("video_token", usual[1])
        patch = processor.get("patch_size") or vision.get("patch_size") or 14
        frames = (videos or {}).get("num_frames")
        check_processor_forms(folder, patch, frames, (image_token, video_token))
        return cls(
            tokenizer=tokenizer,
            images=pictures,
            videos=pictures if qwen else frame_processor(named, images, videos),
            chat_template=find_template(folder, documents, _token_id(tokenizer, "<|im_start|>") is not None),
            patch=patch,
            image_token=image_token,
            video_token=video_token,
            frames=frames,
            expansion=expansion_of(str(config.get("model_type")), image_token, video_token, qwen, split),
            qwen=qwen,
            split=split,
            most_tiles=_most_tiles(config),
            generation=check_forms(read_generation_config(folder), f"{folder}/generation_config.json"),
        )

    @property
    def template(self) -> str:
        """Source of the chat template."""
        return self.chat_template.text

    @property
    def placeholders(self) -> dict[str, str]:
        """The placeholder of each kind of medium."""
        return {"image": self.image_token, "video": self.video_token}

    @property
    def image_token_id(self) -> int | None:
        """Id of the image placeholder; None if the tokenizer has none."""
        return _token_id(self.tokenizer, self.image_token)

    @property
    def video_token_id(self) -> int | None:
        """Id of the video placeholder; None if the tokenizer has none."""
        return _token_id(self.tokenizer, self.video_token)

    @property
    def anyres(self) -> bool:
        """Whether a picture is seen in tiles (LLaVA-NeXT)."""
        return hasattr(self.images, "image_grid_pinpoints")

    def pixel_values(self, images: Sequence[Image.Image], video: bool = False) -> np.ndarray:
        """What the vision tower gets.

        Args:
            images: RGB pictures, or the frames of one video.
            video: treat them as frames: the video settings, never tiles.

        Returns:
            [F, 3, H, W] float32, one frame per picture; for a picture seen in tiles (`anyres`) its tiles, the
            base tile first, those of the next picture behind them.

        Raises:
            RedipruneError: the processor's settings do not fit together.
        """
        processor = self.videos if video else self.images
        # One by one, for the processors pad the tiles of a batch to the same number.
        return np.concatenate([_pixels(processor, image, self.whole and not video) for image in images])

    def _pattern(self, kind: str) -> str:
        """What an expansion takes the place of: of Qwen3-VL's videos the marks around the placeholder too."""
        token = re.escape(self.placeholders[kind])
        if self.qwen is None or not self.qwen.stamps or kind == "image":
            return token
        return rf"(?:<\|vision_start\|>)?{token}(?:<\|vision_end\|>)?"

    def vision_inputs(self, frames: Sequence[Image.Image], video: bool = False) -> dict[str, np.ndarray]:
        """What the vision stage takes: `pixel_values`, a row for each frame, and what is the same for all of them."""
        if self.qwen is not None:
            return self.qwen.inputs(frames, video)
        return {"pixel_values": self.pixel_values(frames, video)}

    def grid(self, frames: Sequence[Image.Image], video: bool = False) -> tuple[int, int] | None:
        """Rows and columns of tokens of each frame, where pictures have any size; None where the model has one grid."""
        return None if self.qwen is None else self.qwen.grid(frames, video)

    def sized(self, least: int | None, most: int | None) -> "Processor":
        """The same for a request that bounds the pixels that pictures are scaled to; None leaves a bound as it is.

        Raises:
            RedipruneError: pictures of this checkpoint have one size, or the bounds do not fit.
        """
        if least is None and most is None:
            return self
        if self.qwen is None:
            raise RedipruneError(
                "min_pixels and max_pixels are for families whose pictures have any size (Qwen-VL); this one's tower has one "
                "size: leave them out"
            )
        return replace(self, qwen=self.qwen.sized(least, most))

    def pace(self, frames: Sequence[Image.Image], video: bool = False) -> float:
        """How far a frame's position in time is behind that of the frame before, where positions have three axes."""
        return 1.0 if self.qwen is None else self.qwen.pace(frames, video)

    def shown(
        self, frames: Sequence[Image.Image], video: bool = False, grid: tuple[int, int] | None = None
    ) -> list[Image.Image]:
        """The pictures, tiles or frames as the tower sees them, one for each row of `pixel_values`.

        Args:
            frames: a picture, or the frames of a video.
            video: treat them as frames.
            grid: rows and columns of tokens, where they are not those of `grid`.
        """
        if self.qwen is not None:
            return self.qwen.shown(frames, video, grid or self.qwen.grid(frames, video))
        return self.seen(self.pixel_values(frames, video), video)

    def of_images(self, count: int) -> "Processor":
        """The same for a request with so many images: LLaVA-OneVision cuts into tiles the only one, and none of several."""
        return replace(self, whole=True) if self.most_tiles is not None and count > 1 else self

    def layout(self, frames: Sequence[Image.Image], video: bool, tokens: int) -> Layout | None:
        """The sequence of a picture's tokens, or a video's, where it is not all of them one after another.

        Args:
            frames: the picture, or the frames.
            video: which of the two they are.
            tokens: of each frame.
        """
        if (video or self.whole) and self.most_tiles is not None:
            return ended_layout(len(frames) * tokens)
        if video or not self.anyres:
            return None
        (image,) = frames
        size, crop = self.images.size, self.images.crop_size
        tile = (crop and crop.height) or size.height or size.shortest_edge
        size = (image.height, image.width)
        return anyres_layout(size, self.images.image_grid_pinpoints, tile, self.patch, self.most_tiles)

    def expand(self, text: str, media: Sequence[tuple[str, Sequence[Image.Image]]]) -> tuple[str, list[int]]:
        """Put what the family writes for a medium in place of its placeholder.

        Args:
            text: a prompt with one placeholder for each medium (see `prompt.prompt_text`).
            media: kind and frames of each, in order; frames as they go into the model.

        Returns:
            The text, and for each medium how many placeholders now stand for it.
        """
        found, parts = iter(media), []

        def shown(match: re.Match[str]) -> str:
            kind, frames = next(found)
            written = self.expansion(kind, frames)
            parts.append(sum(written.count(token) for token in self.placeholders.values()))
            return written

        patterns = {self._pattern(kind) for kind, _ in media}
        return re.sub("|".join(sorted(patterns)) or r"(?!)", shown, text), parts

    def seen(self, pixel_values: np.ndarray, video: bool = False) -> list[Image.Image]:
        """The pictures that `pixel_values` [F, 3, H, W] hold: resized and cropped, as the tower sees them."""
        processor = self.videos if video else self.images
        mean, std = (np.reshape(value, (3, 1, 1)) for value in (processor.image_mean, processor.image_std))
        pixels = (pixel_values * std + mean) / processor.rescale_factor
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return [Image.fromarray(frame) for frame in pixels.transpose(0, 2, 3, 1)]

    def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The dialogue as one text, by the checkpoint's chat template.

        Args:
            messages: `{"role": "user", "content": …}`, the content a text or a list of parts
                `{"type": "image"}`, `{"type": "video"}`, `{"type": "text", "text": …}`.
            add_generation_prompt: end with the words that open the assistant's answer.

        Raises:
            RedipruneError: they are no dialogue, or the template cannot show them.
        """
        check_messages(messages)
        apply = partial(
            self.tokenizer.apply_chat_template,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return render_messages(lambda written: str(apply(written)), messages, self.placeholders)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the tokenizer's opening token unless the text begins with it.

        Placeholders with `LITERAL` in them become the ids of ordinary text.
        """
        opening = self.tokenizer.bos_token
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RedipruneError(
                "the prompt is not valid Unicode; check the encoding it was typed or stored in"
            ) from error
        special = opening is None or not text.startswith(str(opening))
        plain = text.replace(LITERAL, "")
        # `verbose` would warn of prompts beyond the tokenizer's own limit; the pipeline refuses by the model's.
        ids = self.tokenizer.encode(plain, add_special_tokens=special, verbose=False)
        if plain != text:
            for token in self.placeholders.values():
                ids = self._as_text(token, text, ids)
        return ids

    def _as_text(self, token: str, text: str, ids: list[int]) -> list[int]:
        """The ids with those of `token` that are marked as text in `text` replaced by the ids of its characters."""
        placeholder = _token_id(self.tokenizer, token)
        if placeholder is None:
            return ids
        found = re.findall(f"{re.escape(token[0])}({LITERAL}?){re.escape(token[1:])}", text)
        if len(found) != ids.count(placeholder):
            raise RedipruneError(f"the tokenizer does not read every {token} as one token; leave it out of the prompt")
        pieces = self.tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True)
        if placeholder in pieces:  # one that is added, but not as a special token
            pieces = [
                i for part in (token[:1], token[1:]) for i in self.tokenizer.encode(part, add_special_tokens=False)
            ]
        literal = iter(found)
        return [i for index in ids for i in (pieces if index == placeholder and next(literal) else [index])]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def _most_tiles(config: dict[str, Any]) -> int | None:
    """9 of "anyres_max_9", where the family has it."""
    if config.get("model_type") != "llava_onevision":
        return None
    text = str(config.get("vision_aspect_ratio", "anyres_max_9"))
    if re.fullmatch(r"anyres_max_[1-9]\d{0,2}", text) is None:
        raise RedipruneError(f"vision_aspect_ratio in config.json must be like 'anyres_max_9', not {text!r:.100}")
    return int(text.rpartition("_")[2])


def _pixels(processor: Any, image: Image.Image, whole: bool) -> np.ndarray:
    """[F, 3, H, W] of one picture or frame: F is 1, or the number of its tiles unless it is to be seen whole."""
    try:
        # Of two pictures of a request neither is cut into tiles.
        found = processor([[image, image]] if whole else image).pixel_values
    except MemoryError:
        raise
    except Exception as error:  # whatever transformers makes of settings that are none
        raise RedipruneError(
            f"the image processor's settings cannot be used ({first_line(error)}): copy preprocessor_config.json anew from "
            "the checkpoint"
        ) from error
    whole = found if type(processor).__name__.startswith("GotOcr2") else found[0]  # which gives tiles as pictures
    pixels = np.asarray(whole, np.float32)
    return pixels if pixels.ndim == 4 else pixels[None]


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise RedipruneError(f"{folder} has no tokenizer.json: copy it there from the checkpoint")
    try:
        with redirect_stdout(sys.stderr):
            return transformers_class("AutoTokenizer").from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever tokenizers and transformers make of a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RedipruneError(f"the tokenizer in {folder} cannot be read ({reason}): copy it anew") from None


def _token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int | None:
    index = tokenizer.convert_tokens_to_ids(token)
    return index if isinstance(index, int) and tokenizer.convert_ids_to_tokens(index) == token else None
