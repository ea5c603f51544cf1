"""Which visual tokens of a request are kept: each frame on its own, or with one budget over all of them.

features → indices → kept; `prompt_encoder` says of what and for which question.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..graphs.selection.counts import check_clip, num_kept
from .backends.arrays import Array, concatenate
from .bundle import Manifest
from .errors import RedipruneError
from .options import Selection
from .stage_sessions import RequestSessions
from .timing import StageClock
from .visual_tokens import Visual

Chosen = tuple[Visual, Array]  # an image or video with its kept indices, and its kept tokens [F, K, C] or [1, N, C]


class Selector:
    """Selects for one request.

    Args:
        sessions: of the bundle's stages.
        manifest: the bundle's.
        selection: what is asked for.
        clock: adds up what the selection takes.
        pulse: called before each run; a `RedipruneError` that it raises ends the work.

    Raises:
        RedipruneError: the bundle cannot select as it is asked to.
    """

    def __init__(
        self,
        sessions: RequestSessions,
        manifest: Manifest,
        selection: Selection,
        clock: StageClock,
        pulse: Callable[[], object] = lambda: None,
    ):
        self.sessions, self.selection, self.clock, self.pulse = sessions, selection, clock, pulse
        self.family = manifest.family_name
        if selection.over_clip and not manifest.selects_clips:
            asked = "scope 'clip'" if selection.scope == "clip" else "keep 'auto'"
            raise RedipruneError(
                f"{asked} needs the stage 'select_clip', which this bundle, of an earlier version, has not; export the "
                "checkpoint again: run the command that made it with --force"
            )

    def select(self, visuals: Sequence[Visual], question: Array, most: int | None = None) -> list[Chosen]:
        """The kept tokens of every image and video.

        Args:
            visuals: in the order of the prompt.
            question: [L, D], embeddings that steer the choice.
            most: tokens kept of a frame at most, whatever the selection says.

        Raises:
            RedipruneError: a frame has not as many tokens as are to be kept.
        """
        counts = [self.count_of(visual, most) for visual in visuals]
        for visual, count in zip(visuals, counts, strict=True):
            self._check(visual, count)
        chosen: list[Chosen | None] = [None] * len(visuals)
        for group in self._groups(visuals, counts):
            self.pulse()
            members = [visuals[at] for at in group]
            count = counts[group[0]]
            if count == members[0].patches and not self.selection.stops:
                found: list[Chosen] = [(visual, visual.features) for visual in members]
            elif self.selection.over_clip:
                found = self._over_clip(members, question, count)
            else:
                found = [self._by_frame(members[0], question, count)]
            for at, one in zip(group, found, strict=True):
                chosen[at] = one
        return [one for one in chosen if one is not None]

    def count_of(self, visual: Visual, most: int | None = None) -> int:
        """K, the tokens kept of each frame of an image or video: on average, where the budget is the clip's."""
        if self.keeps_whole(visual):
            return visual.patches
        try:
            count = num_kept(visual.patches, self.selection.keep)
            count = count if most is None else max(1, min(count, most))
            if self.selection.over_clip:
                check_clip(count, self.selection.min_per_frame, self.selection.threshold)
        except ValueError as error:
            raise RedipruneError(str(error)) from error
        return count

    def _check(self, visual: Visual, count: int) -> None:
        """Refuse what the tokens of an image or video cannot be pruned by."""
        if self.selection.over_clip and visual.spec.mixed_output is not None:
            raise RedipruneError(
                f"{visual.kind}s of {self.family} keep as many tokens of every frame: ask without scope 'clip' and keep 'auto'"
            )
        if count < visual.patches and visual.layout is not None and visual.layout.mix is not None:
            raise RedipruneError(
                f"a picture of {visual.features.shape[0] - 1} tiles is scaled down behind {self.family}'s projector, where pruned "
                "tokens form no grid: ask without prune_tiles, or give a smaller picture"
            )

    def keeps_whole(self, visual: Visual) -> bool:
        """Whether an image is not pruned at all: one that is seen in tiles, unless that is asked for."""
        return visual.spec.tiled and not self.selection.prune_tiles

    def _groups(self, visuals: Sequence[Visual], counts: Sequence[int]) -> Iterable[list[int]]:
        """Which of them share a budget: all images with equally many tokens; a video has its own."""
        shared: dict[Any, list[int]] = {}
        for at, visual in enumerate(visuals):
            shares = self.selection.scope == "clip" and visual.kind == "image" and not self.keeps_whole(visual)
            shared.setdefault((visual.patches, counts[at]) if shares else at, []).append(at)
        return shared.values()

    def _by_frame(self, visual: Visual, question: Array, count: int) -> Chosen:
        selection = self.selection
        with self.clock("select"):
            outputs = self.sessions.stage("select").run(
                {
                    "features": visual.features,
                    "text_embeds": question,
                    "num_keep": np.array(count),
                    "alpha": np.array(selection.alpha),
                    "tau": np.array(selection.tau),
                }
            )
        return replace(visual, kept=np.asarray(outputs["indices"])), outputs["kept"]

    def _over_clip(self, visuals: Sequence[Visual], question: Array, count: int) -> list[Chosen]:
        """The members of a group, with one budget, or each frame with its own where only the end of the choice is asked for."""
        selection = self.selection
        features = concatenate([visual.features for visual in visuals])  # [frames, patches, channels]
        frames, patches = features.shape[:2]
        whole = selection.scope == "clip"
        indices, kept = [], []
        with self.clock("select"):
            for start in range(0, frames, frames if whole else 1):
                outputs = self.sessions.stage("select_clip").run(
                    {
                        "features": features if whole else features[start : start + 1],
                        "text_embeds": question,
                        "num_keep": np.array(count),
                        "alpha": np.array(selection.alpha),
                        "min_per_frame": np.array(selection.min_per_frame),
                        "threshold": np.array(selection.threshold),
                    }
                )
                indices.append(np.asarray(outputs["indices"]) + start * patches)
                kept.append(outputs["kept"])
        slots, rows = np.concatenate(indices), concatenate(kept)  # [tokens], [tokens, channels]
        by_frame = np.split(slots % patches, np.searchsorted(slots, patches * np.arange(1, frames)))
        chosen, frame, row = [], 0, 0
        for visual in visuals:
            own = by_frame[frame : frame + visual.features.shape[0]]
            tokens = sum(len(one) for one in own)
            part = rows[row : row + tokens]
            chosen.append((replace(visual, kept=own), part.reshape(1, *part.shape)))
            frame, row = frame + len(own), row + tokens
        return chosen
