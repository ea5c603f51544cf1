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
from ...graphs.selection.counts import query_ids
from ...graphs.selection.query_vector import pool_query
from ...runtime.media.processor import Processor, load_image
from ...runtime.media.video import load_video
from ...runtime.prompt import media_order, render_prompt
from ...runtime.visual_tokens import NEWLINE
from .reference_selection import kept_indices, kept_masks


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
    scope: str = "frame"
    min_per_frame: int = 1
    max_new_tokens: int = 16


@dataclass
class ReferenceAnswer:
    token_ids: list[int]
    logits: np.ndarray  # [tokens, V], what each token was chosen from
    kept: list[np.ndarray]


@dataclass(frozen=True)
class Medium:
    """An image or a video of a request.

    Attributes:
        kind: "image" or "video".
        frames: the picture, or the sampled frames.
        parts: placeholders in the prompt that stand for it.
    """

    kind: str
    frames: list[Any]
    parts: int


class Reference:
    """A checkpoint in eager PyTorch that answers requests, pruned or not.

    Attributes:
        placeholders: token ids that stand for images and videos in an encoded prompt.
    """

    def __init__(self, model: Any, processor: Processor):
        self.model = model
        self.processor = self._given = processor
        self.modalities = family_of(model.config).modalities(model.config)
        names = {f"{modality.token or kind}_token_id" for kind, modality in self.modalities.items()}
        self.placeholders = {getattr(model.config, name) for name in names}

    def read(self, request: Request) -> tuple[list[int], list[Medium]]:
        """The prompt's token ids, and its images and videos in the order of their placeholders."""
        images, videos = len(request.images), len(request.videos)
        self.processor = self._given.of_images(images)
        text = render_prompt(self.processor, request.prompt, images, videos)
        pictures = {
            "image": iter([[load_image(source)] for source in request.images]),
            "video": iter([load_video(source, request.frames) for source in request.videos]),
        }
        media = [(kind, next(pictures[kind])) for kind in media_order(self.processor, text, images, videos)]
        text, parts = self.processor.expand(text, media)
        found = [Medium(kind, frames, count) for (kind, frames), count in zip(media, parts, strict=True)]
        return self.processor.encode(text), found

    def answer(self, request: Request) -> ReferenceAnswer:
        """Answer greedily; keep 1.0 is transformers' own `generate` on pixels, anything else prunes by hand."""
        ids, media = self.read(request)
        with torch.inference_mode():
            if isinstance(request.keep, float) and request.keep == 1:
                return self._whole(ids, media, request)
            return self._pruned(ids, media, request)

    def _whole(self, ids: list[int], media: list[Medium], request: Request) -> ReferenceAnswer:
        pixels = [self.pixels(medium.frames, medium.kind) for medium in media]
        counts = iter(
            [self._length(one, p) // one.parts for one, p in zip(media, pixels, strict=True) for _ in range(one.parts)]
        )
        expanded = []
        for token in ids:
            expanded += [token] * (next(counts) if token in self.placeholders else 1)
        inputs = self._model_inputs(media, pixels)
        return self._generate(request, [], input_ids=torch.tensor([expanded]), **inputs)

    def _model_inputs(self, media: list[Medium], pixels: list[Tensor]) -> dict[str, Any]:
        """Pixels as the model's `generate` takes them."""
        if not media:
            return {}
        if self.processor.split is not None:
            return {"pixel_values": torch.cat(pixels)[None]}
        if "video" in self.modalities and self.modalities["video"].token == "image":  # one input for both
            return {"pixel_values": torch.cat(pixels)}
        inputs: dict[str, Any] = {}
        images = [p for medium, p in zip(media, pixels, strict=True) if medium.kind == "image"]
        videos = [p for medium, p in zip(media, pixels, strict=True) if medium.kind == "video"]
        if images and self.modalities["image"].tiled:
            most = max(len(tiles) for tiles in images)  # transformers pads the tiles of a batch
            padded = [torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in images]
            sizes = [(m.frames[0].height, m.frames[0].width) for m in media if m.kind == "image"]
            inputs |= {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}
            if self.processor.most_tiles is not None:
                inputs["batch_num_images"] = torch.tensor([len(images)])
        elif images:
            inputs["pixel_values"] = torch.cat(images)
        if videos:
            inputs["pixel_values_videos"] = torch.stack(videos)
        return inputs

    def _pruned(self, ids: list[int], media: list[Medium], request: Request) -> ReferenceAnswer:
        embed = self.model.get_input_embeddings()
        query = pool_query(embed(torch.tensor(query_ids(ids, self.placeholders), dtype=torch.int64)))
        pixels = [self.pixels(medium.frames, medium.kind) for medium in media]
        projected = [self.features(own, medium.kind) for own, medium in zip(pixels, media, strict=True)]  # [F, P, C]
        features = [self._scaled(own, medium.kind) for own, medium in zip(projected, media, strict=True)]
        wholes = [self.modalities[medium.kind].tiled and not request.prune_tiles for medium in media]
        masks = kept_masks(features, [medium.kind for medium in media], wholes, query, request)
        found = [self._slots(*parts) for parts in zip(media, pixels, projected, masks, strict=True)]
        slots = iter([part for parts in found for part in parts])
        parts: list[Tensor] = []
        positions: list[int] = []  # that the tokens would have without pruning
        end = 0
        for token in ids:
            if token not in self.placeholders:
                parts.append(embed(torch.tensor([token])))
                positions.append(end)
                end += 1
                continue
            for row in next(slots):  # an embedding, or None where it was dropped
                if row is not None:
                    parts.append(row[None])
                    positions.append(end)
                end += 1
        embeds = torch.cat(parts)[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        places = {"position_ids": torch.tensor([positions])} if request.positions == "original" else {}
        return self._generate(request, kept_indices(masks), inputs_embeds=embeds, attention_mask=mask, **places)

    def _slots(self, medium: Medium, pixels: Tensor, projected: Tensor, mask: Tensor) -> list[list[Tensor | None]]:
        """For each placeholder the embedding of every slot, None where it is dropped (`mask` [F, P] is false).

        `projected` [F, P, C] is what goes into the projector.
        """
        flat = self._scaled(self._projector(projected), medium.kind).flatten(0, 1)
        kept = mask.flatten().tolist()
        layout = self.processor.layout(medium.frames, medium.kind == "video", mask.shape[1])
        newline = getattr(self.model.model, "image_newline", None)
        if layout is not None and layout.mix is not None:
            slots = list(self._packed(medium, pixels))
        else:
            slots = [
                newline if slot == NEWLINE else flat[int(slot)] if kept[int(slot)] else None
                for slot in (range(len(flat)) if layout is None else layout.slots)
            ]
        size = len(slots) // medium.parts
        return [slots[at : at + size] for at in range(0, len(slots), size)]

    def _scaled(self, tokens: Tensor, kind: str) -> Tensor:
        """[F, P, …] scaled down to the cells that are selected, where the family does so."""
        return self.model.model.apply_pooling(tokens) if self.modalities[kind].mixed_output else tokens

    def _packed(self, medium: Medium, pixels: Tensor) -> Tensor:
        """[N, D] of the only image of a request, as transformers packs its tiles."""
        (image,) = medium.frames
        sizes = torch.tensor([(image.height, image.width)])
        found = self.model.model.get_image_features(pixels[None], sizes, batch_num_images=torch.tensor([1]))
        return found.pooler_output[0]

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

    def _length(self, medium: Medium, pixels: Tensor) -> int:
        """Visual tokens of an image or a video without pruning."""
        modality = self.modalities[medium.kind]
        tokens = modality.leading + modality.rows * modality.columns
        layout = self.processor.layout(medium.frames, medium.kind == "video", tokens)
        return len(pixels) * tokens if layout is None else len(layout.slots)

    @property
    def _projector(self) -> Any:
        """What makes embeddings of the tower's tokens."""
        model = self.model.model
        return model.connector.modality_projection if hasattr(model, "connector") else model.multi_modal_projector

    def features_of(self, frames: list[Any], kind: str) -> Tensor:
        """[F, P, C] of an image or a video, as they are selected from."""
        return self.features(self.pixels(frames, kind), kind)

    def features(self, pixels: Tensor, kind: str) -> Tensor:
        """[F, P, C] as transformers hands them to the projector, for the frames [F, 3, H, W] of one image or video."""
        model = self.model.model
        handle = self._projector.register_forward_pre_hook(_stop_with_input)
        try:
            if kind == "video" and self.modalities[kind].token is None:
                model.get_video_features(pixels[None])
            elif self.processor.split is not None:
                model.get_image_features(pixels[None])
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
