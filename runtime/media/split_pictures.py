"""How SmolVLM and Idefics3 cut pictures: into rows × columns of tiles, with the whole picture behind them."""

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

_LARGEST = 4096  # pixels of a side, whatever the settings say


@dataclass(frozen=True)
class SplitPictures:
    """The settings of a checkpoint's image processor that decide on tiles, and the marks around them in a prompt.

    Attributes:
        longest: side in pixels that a picture's longest is scaled to.
        tile: side of a tile in pixels.
        splits: whether pictures are cut at all.
        mark, whole: written before every tile, and before the whole picture.
    """

    longest: int
    tile: int
    splits: bool = True
    mark: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    @classmethod
    def of(cls, model_type: str, images: Any, tokenizer: Any) -> "SplitPictures | None":
        """Those of a model type, given its image processor and tokenizer; None of other families."""
        if model_type not in ("smolvlm", "idefics3"):
            return None
        named = [getattr(tokenizer, f"{name}_image_token", None) for name in ("fake", "global")]
        marks = {key: value for key, value in zip(("mark", "whole"), named, strict=True) if value}
        tile = dict(images.max_image_size)["longest_edge"]
        return cls(images.size.longest_edge, tile, bool(images.do_image_splitting), **marks)

    def grid(self, image: Image.Image) -> tuple[int, int]:
        """Rows and columns of tiles; 0 and 0 of a picture that is seen whole alone."""
        if not self.splits:
            return 0, 0
        height, width = _scaled(image.height, image.width, self.longest)
        ratio = width / height
        if width >= height:
            width = math.ceil(width / self.tile) * self.tile
            height = math.ceil(int(width / ratio) / self.tile) * self.tile
        else:
            height = math.ceil(height / self.tile) * self.tile
            width = math.ceil(int(height * ratio) / self.tile) * self.tile
        rows, columns = height // self.tile, width // self.tile
        return (rows, columns) if rows > 1 or columns > 1 else (0, 0)

    def text(self, image: Image.Image, token: str) -> str:
        """What a prompt has in place of a picture, `token` for the tokens of each tile and of the whole."""
        rows, columns = self.grid(image)
        lines = [
            "".join(f"{self.mark}<row_{row}_col_{column}>{token}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        return "".join(lines) + "\n" * bool(rows) + f"{self.mark}{self.whole}{token}{self.mark}"


def _scaled(height: int, width: int, longest: int) -> tuple[int, int]:
    """Sides with the longest of so many pixels, the other even: transformers' `get_resize_output_image_size`."""
    ratio = width / height
    if width >= height:
        width = longest
        height = int(width / ratio)
        height += height % 2
    else:
        height = longest
        width = int(height * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    if max(height, width) > _LARGEST:
        ratio = width / height
        height, width = (int(_LARGEST / ratio), _LARGEST) if width >= height else (_LARGEST, int(_LARGEST * ratio))
    return max(height, 1), max(width, 1)
