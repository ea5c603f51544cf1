"""The image processor that a checkpoint's files name: transformers' own in Pillow and numpy."""

from typing import Any

from ..errors import RedipruneError
from .processor_forms import check_sides
from .transformers_classes import transformers_class

# Processor classes of the hub's files → transformers' implementations in Pillow and numpy. The video
# processors need torchvision; their arithmetic is CLIP's, applied to every frame.
_PILLOW = {
    "CLIPImageProcessor": "CLIPImageProcessorPil",
    "CLIPFeatureExtractor": "CLIPImageProcessorPil",
    "SiglipImageProcessor": "SiglipImageProcessorPil",
    "LlavaImageProcessor": "LlavaImageProcessorPil",
    "LlavaNextImageProcessor": "LlavaNextImageProcessorPil",
    "LlavaNextVideoImageProcessor": "CLIPImageProcessorPil",
    "LlavaOnevisionImageProcessor": "LlavaOnevisionImageProcessorPil",
    "VideoLlavaImageProcessor": "CLIPImageProcessorPil",
    "GotOcr2ImageProcessor": "GotOcr2ImageProcessorPil",
    "SmolVLMImageProcessor": "SmolVLMImageProcessorPil",
    "Idefics3ImageProcessor": "Idefics3ImageProcessorPil",
    "Qwen2VLImageProcessor": "Qwen2VLImageProcessorPil",
}
# By the processor class where the image processor is not named.
_OF_PROCESSOR = {
    "LlavaProcessor": "CLIPImageProcessor",
    "LlavaNextProcessor": "LlavaNextImageProcessor",
    "LlavaNextVideoProcessor": "LlavaNextImageProcessor",
    "LlavaOnevisionProcessor": "LlavaOnevisionImageProcessor",
    "VideoLlavaProcessor": "VideoLlavaImageProcessor",
    "InternVLProcessor": "GotOcr2ImageProcessor",
    "SmolVLMProcessor": "SmolVLMImageProcessor",
    "Idefics3Processor": "Idefics3ImageProcessor",
    "Qwen2VLProcessor": "Qwen2VLImageProcessor",
    "Qwen2_5_VLProcessor": "Qwen2VLImageProcessor",
    "Qwen3VLProcessor": "Qwen2VLImageProcessor",
}

_TILED = ("LlavaNext", "LlavaOnevision")
_SIDES = ("height", "width", "shortest_edge", "longest_edge")


def processor_class_of(images: dict[str, Any], processor: dict[str, Any]) -> str | None:
    """The image processor's class that preprocessor_config.json and processor_config.json name; None where neither does."""
    named = images.get("image_processor_type") or images.get("feature_extractor_type")
    return named or _OF_PROCESSOR.get(str(processor.get("processor_class") or images.get("processor_class", "")))


def image_processor(named: str, settings: dict[str, Any]) -> Any:
    """The Pillow implementation of a processor class, with its settings."""
    name = _PILLOW.get(str(named).removesuffix("Fast").removesuffix("Pil"))
    if name is None:
        known = ", ".join(sorted(_PILLOW))
        raise RedipruneError(f"image processor {named} is not supported: use one of {known}")
    ours = {key: value for key, value in settings.items() if not key.endswith(("_type", "_class"))}
    if not name.startswith(_TILED):
        ours.pop("image_grid_pinpoints", None)
    if name.startswith("GotOcr2"):
        ours["crop_to_patches"] = True  # InternVL's processor asks for it, whatever the file says
    try:
        made = transformers_class(name)(**ours)
        sizes = [
            size[side]
            for size in (made.size, getattr(made, "crop_size", None))
            if size is not None
            for side in dict(size)
            if side in _SIDES
        ]
    except Exception as error:  # whatever transformers makes of settings that are none
        raise RedipruneError(
            f"the image processor's settings cannot be used ({first_line(error)}): copy preprocessor_config.json anew"
        ) from error
    if not name.startswith("Qwen2VL"):  # whose sizes are numbers of pixels
        check_sides(sizes)
    return made


def frame_processor(named: str, images: dict[str, Any], videos: dict[str, Any] | None) -> Any:
    """For frames: the video settings; without any, those of pictures, but no tiles."""
    if named.startswith("GotOcr2"):  # frames are whole
        processor = image_processor(named, videos or images)
        processor.crop_to_patches = False
        return processor
    if named.startswith(("SmolVLM", "Idefics3")):  # which take none
        return image_processor(named, images)
    if named.startswith("LlavaOnevision"):
        return image_processor("CLIPImageProcessor", {"do_center_crop": False} | (videos or images))
    if videos:
        return image_processor("CLIPImageProcessor", videos)
    return image_processor("CLIPImageProcessor" if "LlavaNext" in named else named, images)


def first_line(error: Exception) -> str:
    """What an error says, in one short line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
