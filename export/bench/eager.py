"""transformers' own modules, timed stage by stage: unpruned, or pruned by the release's selection loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from ...graphs.keep import num_kept, query_ids
from ...graphs.query import match_width, pool_query
from ...graphs.selection import score_tokens
from ...runtime.preprocess import Processor, load_image, load_video
from ...runtime.prompt import render_prompt
from ..reference import Reference
from .answering import Laps, splice

Timings = dict[str, float]


def load(checkpoint: str, dtype: str, threads: int, compiled: bool = False) -> Callable[[dict[str, Any]], Timings]:
    torch.set_num_threads(threads)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    model = model.eval().requires_grad_(False)
    if compiled:
        model.model.vision_tower.compile(dynamic=False)
        model.model.language_model.compile(dynamic=True)
    return Eager(model, Processor.load(Path(checkpoint))).ask


class Eager:
    """A checkpoint in transformers that answers and tells what each stage took."""

    def __init__(self, model: Any, processor: Processor):
        self.model, self.processor = model, processor
        self.reference = Reference(model, processor)

    @torch.inference_mode()
    def ask(self, request: dict[str, Any]) -> Timings:
        model, lap = self.model, Laps()
        images, videos = request["images"], request["videos"]
        ids = self.processor.encode(render_prompt(self.processor, request["question"], len(images), len(videos)))
        frames = [("image", [load_image(image)]) for image in images]
        frames += [("video", load_video(video, request["frames"])) for video in videos]
        pixels = [
            (kind, torch.from_numpy(self.processor.pixel_values(pictures, kind == "video")).to(model.dtype))
            for kind, pictures in frames
        ]
        lap("preprocess")
        placeholders = self.reference.placeholders
        tail = query_ids(ids, placeholders)
        query = pool_query(model.get_input_embeddings()(torch.tensor(tail)))
        lap("embed")
        visual = []
        for kind, values in pixels:
            features = self.reference.features(values, kind)  # [frames, patches, channels]
            lap("vision")
            if request["keep"] < 1:
                indices = select_as_released(features, query, request["keep"])
                features = torch.stack([frame[kept] for frame, kept in zip(features, indices, strict=True)])
                lap("select")
            visual.append(model.model.multi_modal_projector(features).flatten(0, 1))
            lap("project")
        embeds = splice(ids, model.get_input_embeddings()(torch.tensor(ids)), visual, placeholders)
        lap("embed")
        cache = DynamicCache(config=model.config.text_config)
        token = self._step(embeds, cache)
        lap.first_token()
        for _ in range(request["new_tokens"] - 1):
            token = self._step(model.get_input_embeddings()(torch.tensor([[token]])), cache)
        return lap.end(request["new_tokens"])

    def _step(self, embeds: Tensor, cache: Any) -> int:
        model = self.model
        hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return int(model.lm_head(hidden.last_hidden_state[:, -1]).argmax())


def select_as_released(features: Tensor, query: Tensor, keep: float, alpha: float = 0.5) -> Tensor:
    """The release's way of computing the same choice: frame by frame, the minimum recomputed for every pick.

    Args:
        features: [F, P, C]. query: [D].

    Returns:
        Indices [F, K], ascending.

    Source: `_select_text_cond` of the authors' release, restated.
    """
    chosen = []
    count = num_kept(features.shape[1], keep)
    for frame in features:
        relevance, similarity = score_tokens(frame[None], match_width(query, frame.shape[1]))
        distance = 1.0 - similarity[0]
        picks = [int(relevance[0].argmax())]
        for _ in range(count - 1):
            score = distance[picks].min(dim=0).values + alpha * relevance[0]
            score[picks] = -torch.inf
            picks.append(int(score.argmax()))
        chosen.append(torch.tensor(sorted(picks)))
    return torch.stack(chosen)
