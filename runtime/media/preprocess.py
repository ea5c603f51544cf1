"""From pictures and dialogue to pixel values and token ids, as the checkpoint's own processor files say."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import RedipruneError
from .images import image_key, load_image
from .tiles import anyres_layout
from .video import load_video

# Without torch transformers says at every start that models are unavailable; the runtime needs none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Processor", "image_key", "load_image", "load_video"]

# Processor classes of the hub's files → transformers' implementations in Pillow and numpy. The video
# processors need torchvision; their arithmetic is CLIP's, applied to every frame.
_CLIP = "transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil"
_PILLOW = {
    "CLIPImageProcessor": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "SiglipImageProcessor": "transformers.models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
    "LlavaImageProcessor": "transformers.models.llava.image_processing_pil_llava.LlavaImageProcessorPil",
    "LlavaNextImageProcessor": (
        "transformers.models.llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil"
    ),
    "LlavaNextVideoImageProcessor": _CLIP,
    "VideoLlavaImageProcessor": _CLIP,
}
# By the processor class where the image processor is not named.
_DEFAULT = {
    "LlavaProcessor": "CLIPImageProcessor",
    "LlavaNextVideoProcessor": "LlavaNextImageProcessor",
    "VideoLlavaProcessor": "VideoLlavaImageProcessor",
}


@dataclass
class Processor:
    """A checkpoint's tokenizer, chat template, picture and video settings."""

    tokenizer: "PreTrainedTokenizerBase"
    images: Any  # a PilBackend of transformers, its settings as attributes
    videos: Any  # likewise
    template: str | None
    patch: int  # side of a patch in pixels
    image_token: str
    video_token: str
    frames: int | None  # how many frames of a video the checkpoint asks for
    generation: dict[str, Any] = field(default_factory=dict)  # generation_config.json

    @classmethod
    def load(cls, folder: str | Path) -> "Processor":
        """Read the processor files of a checkpoint or of a bundle's `processor/`.

        Raises:
            RedipruneError: a file is missing or no JSON, or names a processor that is not known here.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RedipruneError(f"there is no folder {folder}")
        processor = _read_json(folder / "processor_config.json") or {}
        config = _read_json(folder / "config.json") or {}
        images = processor.get("image_processor") or _read_json(folder / "preprocessor_config.json")
        if not images:
            raise RedipruneError(f"{folder} has no preprocessor_config.json: copy it there from the checkpoint")
        videos = processor.get("video_processor") or _read_json(folder / "video_preprocessor_config.json")
        named = images.get("image_processor_type") or images.get("feature_extractor_type")
        named = named or _DEFAULT.get(processor.get("processor_class") or images.get("processor_class", ""))
        if named is None:
            raise RedipruneError(f"{folder}/preprocessor_config.json names no image_processor_type: add it")
        if "image_grid_pinpoints" in config and "image_grid_pinpoints" not in images:
            images = images | {"image_grid_pinpoints": config["image_grid_pinpoints"]}
        vision = config.get("vision_config") or {}
        return cls(
            tokenizer=_load_tokenizer(folder),
            images=_image_processor(named, images),
            videos=_frame_processor(named, images, videos),
            template=_chat_template(folder, processor),
            patch=processor.get("patch_size") or vision.get("patch_size") or 14,
            image_token=processor.get("image_token", "<image>"),
            video_token=processor.get("video_token", "<video>"),
            frames=(videos or {}).get("num_frames"),
            generation=_read_json(folder / "generation_config.json") or {},
        )

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
        """
        processor = self.videos if video else self.images
        # One by one, for the processors pad the tiles of a batch to the same number.
        arrays = [np.asarray(processor(image).pixel_values[0], np.float32) for image in images]
        return np.concatenate(arrays) if self.anyres and not video else np.stack(arrays)

    def layout(self, image: Image.Image) -> np.ndarray | None:
        """[N] int64, the slots of a picture seen in tiles (see `anyres_layout`); None where it is whole."""
        if not self.anyres:
            return None
        size, crop = self.images.size, self.images.crop_size
        tile = (crop and crop.height) or size.height or size.shortest_edge
        return anyres_layout((image.height, image.width), self.images.image_grid_pinpoints, tile, self.patch)

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
            RedipruneError: the checkpoint has no chat template, or the template fails on these messages.
        """
        if self.template is None:
            raise RedipruneError("the checkpoint has no chat template: add its chat_template.jinja")
        conversation: list[Any] = [
            message | {"content": [{"type": "text", "text": content}]}
            if isinstance(content := message["content"], str)
            else message
            for message in messages
        ]
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise RedipruneError(f"the chat template refuses these messages: {error}") from None
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the tokenizer's opening token unless the text begins with it."""
        opening = self.tokenizer.bos_token
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RedipruneError(
                "the prompt is not valid Unicode; check the encoding it was typed or stored in"
            ) from error
        special = opening is None or not text.startswith(str(opening))
        # `verbose` would warn of prompts beyond the tokenizer's own limit; the pipeline refuses by the model's.
        return self.tokenizer.encode(text, add_special_tokens=special, verbose=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RedipruneError(f"{file} cannot be read ({error}): copy it anew from the checkpoint") from None
    if not isinstance(document, dict):
        raise RedipruneError(f"{file} is no JSON object: copy it anew from the checkpoint")
    return document


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise RedipruneError(f"{folder} has no tokenizer.json: copy it there from the checkpoint")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever tokenizers and transformers make of a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RedipruneError(f"the tokenizer in {folder} cannot be read ({reason}): copy it anew") from None


def _token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int | None:
    index = tokenizer.convert_tokens_to_ids(token)
    return index if isinstance(index, int) and tokenizer.convert_ids_to_tokens(index) == token else None


def _image_processor(named: str, settings: dict[str, Any]) -> Any:
    """The Pillow implementation of a processor class, with its settings."""
    path = _PILLOW.get(named.removesuffix("Fast").removesuffix("Pil"))
    if path is None:
        known = ", ".join(sorted(_PILLOW))
        raise RedipruneError(f"image processor {named} is not supported: use one of {known}")
    module, name = path.rsplit(".", 1)
    processor = getattr(import_module(module), name)
    ours = {key: value for key, value in settings.items() if not key.endswith(("_type", "_class"))}
    if "LlavaNext" not in name:
        ours.pop("image_grid_pinpoints", None)
    return processor(**ours)


def _frame_processor(named: str, images: dict[str, Any], videos: dict[str, Any] | None) -> Any:
    """For frames: the video settings; without any, those of pictures, but no tiles."""
    if videos:
        return _image_processor("CLIPImageProcessor", videos)
    return _image_processor("CLIPImageProcessor" if "LlavaNext" in named else named, images)


def _chat_template(folder: Path, processor: dict[str, Any]) -> str | None:
    """From chat_template.jinja, chat_template.json, processor_config.json or tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    documents = [_read_json(folder / name) or {} for name in ("chat_template.json", "tokenizer_config.json")]
    for document in (documents[0], processor, documents[1]):
        template = document.get("chat_template")
        if isinstance(template, list):  # several named templates
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template:
            return template
    return None
