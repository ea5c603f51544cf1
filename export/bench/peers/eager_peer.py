"""transformers' own modules, timed stage by stage: unpruned, or pruned by the release's selection loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from ....graphs.selection.as_released import release_select
from ....graphs.selection.counts import num_kept, query_ids
from ....graphs.selection.query_vector import match_width, pool_query
from ....runtime.errors import RedipruneError
from ....runtime.media.processor import Processor
from ...validate.eager_reference import Reference, Request
from .answering import AnswerTimer, splice

Timings = dict[str, float]


def load(checkpoint: str, dtype: str, threads: int, compiled: bool = False) -> Callable[[dict[str, Any]], Timings]:
    """What answers a request with its seconds by stage (`turn.take_turn`)."""
    torch.set_num_threads(threads)
    return Eager(checkpoint, dtype, compiled=compiled).ask


class Eager:
    """A checkpoint in transformers that answers and tells what each stage took.

    On a GPU stages are enqueued, not waited for: only the times to the first token, per token and in all mean something.
    """

    def __init__(self, checkpoint: str | Path, dtype: str, device: str = "cpu", compiled: bool = False):
        torch.backends.cuda.matmul.allow_tf32 = False
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), trust_remote_code=False
        )
        self.model = self.model.to(device).eval().requires_grad_(False)
        if compiled:
            self.model.model.vision_tower.compile(dynamic=False)
            self.model.model.language_model.compile(dynamic=True)
        self.processor = Processor.load(Path(checkpoint))
        if self.processor.qwen is not None:
            raise RedipruneError("it times families with one projector behind the tower, and Qwen-VL is none of them")
        self.reference = Reference(self.model, self.processor)
        self.token_ids: list[int] = []  # of the last answer

    @torch.inference_mode()
    def ask(self, request: dict[str, Any]) -> Timings:
        """Answer a request as `turn.take_turn` has it; the answer's tokens are then in `token_ids`."""
        model, timer = self.model, AnswerTimer()
        with timer("preprocess"):
            ids, pixels = self._read(request)
        placeholders = self.reference.placeholders
        with timer("embed"):
            query = pool_query(self._embed(query_ids(ids, placeholders)))  # [D]
        visual = []
        for kind, values in pixels:
            with timer("vision"):
                features = self.reference.features(values, kind)  # [frames, patches, channels]
            if request["keep"] < 1:
                with timer("select"):
                    features = self._pruned(features, query, request["keep"])
            with timer("project"):
                visual.append(model.model.multi_modal_projector(features).flatten(0, 1))
        with timer("embed"):
            embeds = splice(ids, self._embed(ids), visual, placeholders)
        cache = DynamicCache(config=model.config.text_config)
        with timer("prefill"):
            self.token_ids = [self._step(embeds, cache)]
        timer.first_token()
        for _ in range(request["new_tokens"] - 1):
            self.token_ids.append(self._step(self._embed(self.token_ids[-1:])[None], cache))
        return timer.finish(request["new_tokens"])

    def _read(self, request: dict[str, Any]) -> tuple[list[int], list[tuple[str, Tensor]]]:
        """The prompt's ids, and of each picture and video its kind and pixels [F, 3, H, W]."""
        asked = Request(request["question"], request["images"], request["videos"], request["frames"])
        ids, media = self.reference.read(asked)
        if any(medium.parts > 1 for medium in media):
            raise RedipruneError("it takes models with one placeholder for all frames of a video only")
        return ids, [(medium.kind, self.reference.pixels(medium.frames, medium.kind)) for medium in media]

    def _pruned(self, features: Tensor, query: Tensor, keep: float) -> Tensor:
        """[F, P, C] → [F, K, C] by the release's own loop."""
        count = num_kept(features.shape[1], keep)
        chosen = release_select(features, match_width(query, features.shape[2]).to(self.model.dtype), count)
        return torch.stack([frame[kept] for frame, kept in zip(features, chosen, strict=True)])

    def _embed(self, ids: list[int]) -> Tensor:
        """[S] → [S, D]"""
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64, device=self.model.device))

    def _step(self, embeds: Tensor, cache: Any) -> int:
        model = self.model
        hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return int(model.lm_head(hidden.last_hidden_state[:, -1]).argmax())
