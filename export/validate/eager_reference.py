"""The eager reference end to end: the checkpoint in transformers, selection by `select_tokens`, greedy decoding.

Nothing of the traced stages is used here: the tower runs as transformers runs it, the answer comes from `generate`.
At keep = 1 nothing of ours is used at all but the preprocessing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graphs.families import family_of
from ...graphs.selection.counts import num_kept, query_ids
from ...graphs.selection.query_vector import pool_query
from ...graphs.selection.reference import select_tokens
from ...runtime.media.preprocess import Processor, load_image, load_video
from ...runtime.prompt import render_prompt
from ...runtime.visual_tokens import NEWLINE


@dataclass
class Request:
    """A question as the pipeline takes it."""

    prompt: str
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    frames: int = 8
    keep: float | int = 1.0
    alpha: float = 0.5
    tau: float = 0.0
    prune_tiles: bool = False
    positions: str = "compact"
    max_new_tokens: int = 16


@dataclass
class ReferenceAnswer:
    token_ids: list[int]
    logits: np.ndarray  # [tokens, V], what each token was chosen from
    kept: list[np.ndarray]


class Reference:
    """A checkpoint in eager PyTorch that answers requests, pruned or not."""

    def __init__(self, model: Any, processor: Processor):
        self.model = model
        self.processor = processor
        self.modalities = family_of(model.config).modalities(model.config)
        config = model.config
        self.placeholders = {config.image_token_id: "image"}
        if getattr(config, "video_token_id", None) is not None:
            self.placeholders[config.video_token_id] = "video"

    def answer(self, request: Request) -> ReferenceAnswer:
        """Answer greedily; keep 1.0 is transformers' own `generate` on pixels, anything else prunes by hand."""
        text = render_prompt(self.processor, request.prompt, len(request.images), len(request.videos))
        ids = self.processor.encode(text)
        pictures = {
            "image": [[load_image(source)] for source in request.images],
            "video": [load_video(source, request.frames) for source in request.videos],
        }
        with torch.inference_mode():
            if isinstance(request.keep, float) and request.keep == 1:
                return self._whole(ids, pictures, request)
            return self._pruned(ids, pictures, request)

    def _whole(self, ids: list[int], pictures: dict[str, list[Any]], request: Request) -> ReferenceAnswer:
        inputs: dict[str, Any] = {}
        lengths: dict[str, list[int]] = {"image": [], "video": []}
        if pictures["image"]:
            pixels = [self.pixels(picture, "image") for picture in pictures["image"]]
            tiled = self.modalities["image"].tiled
            if tiled:
                most = max(len(tiles) for tiles in pixels)  # transformers pads the tiles of a batch
                inputs["pixel_values"] = torch.stack(
                    [torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in pixels]
                )
                sizes = [(picture[0].height, picture[0].width) for picture in pictures["image"]]
                inputs["image_sizes"] = torch.tensor(sizes)
            else:
                inputs["pixel_values"] = torch.cat(pixels)
            lengths["image"] = [self._length("image", picture) for picture in pictures["image"]]
        if pictures["video"]:
            inputs["pixel_values_videos"] = torch.stack([self.pixels(frames, "video") for frames in pictures["video"]])
            lengths["video"] = [self._length("video", frames) for frames in pictures["video"]]
        counts = {kind: iter(values) for kind, values in lengths.items()}
        expanded = []
        for token in ids:
            kind = self.placeholders.get(token)
            expanded += [token] * (next(counts[kind]) if kind else 1)
        return self._generate(request, [], input_ids=torch.tensor([expanded]), **inputs)

    def _pruned(self, ids: list[int], pictures: dict[str, list[Any]], request: Request) -> ReferenceAnswer:
        embed = self.model.get_input_embeddings()
        query = pool_query(embed(torch.tensor(query_ids(ids, self.placeholders), dtype=torch.int64)))
        counts = {kind: iter(values) for kind, values in pictures.items()}
        parts, kept = [], []
        positions: list[int] = []  # that the tokens would have without pruning
        end = 0
        for token in ids:
            kind = self.placeholders.get(token)
            if kind is None:
                parts.append(embed(torch.tensor([token])))
                positions.append(end)
                end += 1
                continue
            frames = next(counts[kind])
            features = self.features(self.pixels(frames, kind), kind)
            tiled = self.modalities[kind].tiled
            keep = 1.0 if tiled and not request.prune_tiles else request.keep
            count = num_kept(features.shape[1], keep)
            indices = select_tokens(features, query, count, request.alpha, request.tau)
            kept.append(indices.numpy())
            projected = self.model.model.multi_modal_projector(features)
            patches = features.shape[1]
            if not tiled:
                parts += [frame[chosen] for frame, chosen in zip(projected, indices, strict=True)]
                positions += [end + at * patches + int(patch) for at, row in enumerate(indices) for patch in row]
                end += len(indices) * patches
                continue
            chosen = {tile * patches + int(patch) for tile, row in enumerate(indices) for patch in row}
            flat = projected.flatten(0, 1)
            for slot in self.processor.layout(frames[0]):  # pyright: ignore[reportOptionalIterable]
                if slot == NEWLINE or int(slot) in chosen:
                    parts.append(self.model.model.image_newline[None] if slot == NEWLINE else flat[int(slot)][None])
                    positions.append(end)
                end += 1
        embeds = torch.cat(parts)[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        places = {"position_ids": torch.tensor([positions])} if request.positions == "original" else {}
        return self._generate(request, kept, inputs_embeds=embeds, attention_mask=mask, **places)

    def _generate(self, request: Request, kept: list[np.ndarray], **inputs: Any) -> ReferenceAnswer:
        out = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        logits = torch.cat(out.logits).float().numpy()
        return ReferenceAnswer(out.sequences[0, -len(logits) :].tolist(), logits, kept)

    def pixels(self, frames: list[Any], kind: str) -> Tensor:
        """[F, 3, H, W] in the model's dtype, on its device."""
        pixels = torch.from_numpy(self.processor.pixel_values(frames, kind == "video"))
        return pixels.to(self.model.device, self.model.dtype)

    def _length(self, kind: str, frames: list[Any]) -> int:
        modality = self.modalities[kind]
        if modality.tiled:
            return len(self.processor.layout(frames[0]))  # pyright: ignore[reportArgumentType]
        return len(frames) * (modality.leading + modality.rows * modality.columns)

    def features(self, pixels: Tensor, kind: str) -> Tensor:
        """[F, P, C] as transformers hands them to the projector, for the frames [F, 3, H, W] of one image or video."""
        model = self.model.model
        handle = model.multi_modal_projector.register_forward_pre_hook(_stop_with_input)
        try:
            if kind == "video":
                model.get_video_features(pixels[None])
            elif self.modalities[kind].tiled:  # the picture's size is used behind the projector only
                model.get_image_features(pixels, image_sizes=torch.tensor([pixels.shape[2:]]))
            else:
                model.get_image_features(pixels)
        except _AtProjector as reached:
            return reached.features
        finally:
            handle.remove()
        raise AssertionError("transformers did not call the projector")


class _AtProjector(Exception):
    """Ends a forward pass at the projector, with what it was given."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features


def _stop_with_input(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
    raise _AtProjector(arguments[0])
