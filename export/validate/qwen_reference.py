"""The eager reference of Qwen-VL: positions of three axes, pictures of any size, for some embeddings for the first layers.

At keep 1 the answer is transformers' `generate` on pixels. Pruned, it is transformers' own embeddings and positions of the
whole prompt, those of dropped groups taken out, decoded greedily.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.vision_utils import get_vision_window_index

from ...graphs.selection.counts import query_ids
from ...graphs.selection.query_vector import pool_query
from ...runtime.media.processor import Processor
from .eager_reference import Medium, Reference, ReferenceAnswer, Request
from .reference_selection import kept_indices, kept_masks

_TYPES = {"image": 1, "video": 2}


class QwenReference(Reference):
    """A checkpoint of Qwen-VL in eager PyTorch."""

    def _whole(self, ids: list[int], media: list[Medium], request: Request) -> ReferenceAnswer:
        expanded, types = self._expanded(ids, media)
        self.model.model.rope_deltas = None  # of an earlier request
        given: dict[str, Any] = {"input_ids": expanded, "attention_mask": torch.ones_like(expanded)}
        if media:
            given |= {"mm_token_type_ids": types} | self._pixels(media) | self._times(media)
        return self._generate(request, [], **given)

    def _pruned(self, ids: list[int], media: list[Medium], request: Request) -> ReferenceAnswer:
        if not media:
            return self._whole(ids, media, request)
        inner, embed = self.model.model, self.model.get_input_embeddings()
        query = pool_query(embed(torch.tensor(query_ids(ids, self.placeholders), dtype=torch.int64)))
        expanded, types = self._expanded(ids, media)
        grids = {name: value for name, value in self._pixels(media).items() if name.endswith("thw")}
        positions, _ = inner.get_rope_index(expanded, types, **grids, **self._times(media))  # [3, 1, S]
        embeds = embed(expanded)  # [1, S, D]
        visual = (types != 0)[0]
        encoded = [self._encoded(medium) for medium in media]
        features, merged, added = zip(*encoded, strict=True)
        kinds = [medium.kind for medium in media]
        masks = kept_masks(features, kinds, [False] * len(media), query, request)  # of each [frames, groups]
        keeps, kept = [mask.flatten() for mask in masks], kept_indices(masks)
        embeds[0, visual] = torch.cat(merged)
        left = torch.ones(embeds.shape[1], dtype=torch.bool)
        left[visual] = torch.cat(keeps)
        rows = torch.cat(keeps)
        deepstack = [torch.cat([one[tap] for one in added])[rows] for tap in range(len(added[0]))]
        extra = {"visual_pos_masks": visual[None, left], "deepstack_visual_embeds": deepstack} if deepstack else {}
        return self._greedy(request, kept, embeds[:, left], positions[..., left], extra)

    def _greedy(
        self,
        request: Request,
        kept: list[np.ndarray],
        embeds: Tensor,
        positions: Tensor,
        extra: dict[str, Any],
    ) -> ReferenceAnswer:
        model, cache = self.model, DynamicCache(config=self.model.config.text_config)
        ends = model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        tokens: list[int] = []
        logits: list[Tensor] = []
        while len(tokens) < request.max_new_tokens and not (tokens and tokens[-1] in ends):
            hidden = model.model.language_model(
                inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True, **extra
            ).last_hidden_state
            logits.append(model.lm_head(hidden[:, -1])[0])
            tokens.append(int(logits[-1].argmax()))
            embeds, extra = model.get_input_embeddings()(torch.tensor([tokens[-1:]])), {}
            positions = positions[..., -1:] + 1
        return ReferenceAnswer(tokens, torch.stack(logits).float().numpy(), kept)

    def features_of(self, frames: list[Any], kind: str) -> Tensor:
        """[F, G, C], by which groups are selected."""
        return self._encoded(Medium(kind, frames, 1))[0]

    def _encoded(self, medium: Medium) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Features [F, G, C]; what transformers makes of the groups [F·G, D]; and of those of tapped layers."""
        tower = self.model.model.visual
        seen: list[Tensor] = []
        handle = tower.merger.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        patches, grid = self._rows(medium)
        with torch.inference_mode():
            out = tower(patches, grid)
        handle.remove()
        unit = tower.spatial_merge_size**2
        frames, groups = int(grid[0, 0]), int(grid[0, 1] * grid[0, 2]) // unit
        rows = seen[0].reshape(frames * groups, unit, -1)
        if hasattr(tower, "window_size"):  # groups in the order of windows
            order, _ = get_vision_window_index(
                grid, tower.spatial_merge_size, tower.window_size, tower.patch_size
            )  # [groups]
            rows = rows[torch.argsort(order)]
        features = rows.mean(1).reshape(frames, groups, -1)
        return features, out.pooler_output, list(getattr(out, "deepstack_features", None) or ())

    def _rows(self, medium: Medium) -> tuple[Tensor, Tensor]:
        """A medium's patches [patches, X] and grid [1, 3], as the tower takes them."""
        processor: Processor = self.processor
        pixels = processor.vision_inputs(medium.frames, medium.kind == "video")["pixel_values"]
        grid = processor.grid(medium.frames, medium.kind == "video")
        assert grid is not None
        merge = self.model.config.vision_config.spatial_merge_size
        thw = torch.tensor([[len(pixels), grid[0] * merge, grid[1] * merge]])
        rows = torch.from_numpy(pixels.reshape(-1, pixels.shape[-1]))
        return rows.to(self.model.device, self.model.dtype), thw

    def _pixels(self, media: list[Medium]) -> dict[str, Tensor]:
        """Pixels and grids as `generate` takes them."""
        found: dict[str, Tensor] = {}
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            parts = [self._rows(medium) for medium in media if medium.kind == kind]
            if parts:
                found[name] = torch.cat([rows for rows, _ in parts])
                found[f"{kind}_grid_thw"] = torch.cat([grid for _, grid in parts])
        return found

    def _times(self, media: list[Medium]) -> dict[str, Tensor]:
        """Seconds between a video's frames, where positions in time follow them."""
        qwen = self.processor.qwen
        assert qwen is not None
        if qwen.form.speed is None:
            return {}
        apart = [qwen.seconds_apart(medium.frames) for medium in media if medium.kind == "video"]
        return {"second_per_grid_ts": torch.tensor(apart)} if apart else {}

    def _expanded(self, ids: list[int], media: list[Medium]) -> tuple[Tensor, Tensor]:
        """Token ids [1, S] with a placeholder for each group, and what each is: 0 text, 1 image, 2 video."""
        counts = []
        for medium in media:
            groups = self._rows(medium)[1].prod() // self.model.model.visual.spatial_merge_size**2
            counts += [(_TYPES[medium.kind], int(groups) // medium.parts)] * medium.parts
        parts, expanded, types = iter(counts), [], []
        for token in ids:
            kind, count = next(parts) if token in self.placeholders else (0, 1)
            expanded += [token] * count
            types += [kind] * count
        return torch.tensor([expanded]), torch.tensor([types])
