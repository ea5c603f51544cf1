"""Encodes a request's prompt: pictures are read and encoded, visual tokens selected (pruned) for the question, projected
and spliced into the text.

pixels → features → indices → kept → projected → spliced, one step after another.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..graphs.selection.counts import query_ids
from .backends.arrays import Array, concatenate, take
from .bundle import Manifest
from .cells import KeptCells
from .errors import RedipruneError
from .feature_cache import Encoded
from .media.limits import MediaLimits
from .media.processor import Processor, image_key, load_image
from .options import Selection
from .positions import Positions
from .prefill_time import PrefillTime
from .prompt import Prompt, encode_text, media_order, prompt_ids, prompt_text
from .selector import Selector
from .stage_sessions import RequestSessions
from .timing import StageClock
from .visual_tokens import Projected, Visual, splice

# Of the time to the first token, for the selection, which takes up to 1 %, and for what times scatter by.
_RESERVE = 0.02


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt as the decoder reads it.

    Attributes:
        embeds: [S', D], the kept visual tokens where their placeholders stood.
        ids: [S] token ids of the text, with the placeholders of the images and videos (`Visual.parts`).
        visuals: the images and videos in the order of the prompt.
        kept_tokens: visual tokens in `embeds`.
        warnings: what must be known of them (see `Answer.warnings`).
        positions: of the tokens in `embeds`; None: their places there.
        deepstack: [T, S', D], what is added behind the decoder's first T layers, where the family has it.
    """

    embeds: Array
    ids: list[int]
    visuals: list[Visual]
    kept_tokens: int
    warnings: list[str]
    positions: Positions | None = None
    deepstack: np.ndarray | None = None

    @property
    def end(self) -> int:
        """The position of the answer's first token."""
        return self.embeds.shape[0] if self.positions is None else self.positions.end

    @property
    def unpruned_length(self) -> int:
        """Positions that the prompt would take with every visual token."""
        return self.text_tokens + sum(visual.total for visual in self.visuals)

    @property
    def text_tokens(self) -> int:
        """Tokens of the text, placeholders not counted."""
        return len(self.ids) - sum(visual.parts for visual in self.visuals)


class PromptEncoder:
    """Encodes the prompt of one request.

    Args:
        manifest: the bundle's; says how an image or video becomes tokens.
        processor: the bundle's.
        sessions: of its stages.
        newline: [D] or None, the embedding that ends a row of tiles.
        selection: which visual tokens are kept.
        limits: what an image or video may be at most.
        clock: adds up what each stage takes.
        prefill_time: of the language stage on this machine.
        pulse: called between frames and stages; a `RedipruneError` that it raises ends the work.
    """

    def __init__(
        self,
        manifest: Manifest,
        processor: Processor,
        sessions: RequestSessions,
        newline: np.ndarray | None,
        selection: Selection,
        limits: MediaLimits,
        clock: StageClock,
        prefill_time: PrefillTime,
        pulse: Callable[[], object] = lambda: None,
    ):
        self.modalities, self.family = manifest.modalities, manifest.family_name
        if selection.positions == "original" and "language" not in manifest.stages:
            raise RedipruneError("positions 'original' cannot be handed to a decoder elsewhere; ask with 'compact'")
        if selection.positions == "original" and not manifest.takes_positions:
            raise RedipruneError(
                "positions 'original' need a language stage that takes positions, and this bundle's, of an earlier version, "
                "takes none; export the checkpoint again, or ask with positions 'compact'"
            )
        self.vocabulary = manifest.decoder.vocabulary
        self.axes = manifest.position_axes
        if selection.positions == "compact" and self.axes > 1:
            raise RedipruneError(
                f"positions of {self.family} are (time, row, column), which kept tokens keep: ask with positions 'original'"
            )
        if selection.frame_tolerance is not None and any(spec.dynamic for spec in self.modalities.values()):
            raise RedipruneError(
                f"frame_tolerance is not for {self.family}, which makes one frame of two; leave it out"
            )
        self.processor = processor.sized(selection.min_pixels, selection.max_pixels)
        self.sessions, self.newline = sessions, newline
        self.selection, self.limits, self.clock, self.pulse = selection, limits, clock, pulse
        self.warnings: list[str] = []
        self.selector = Selector(sessions, manifest, selection, clock, pulse)
        self.prefill_time = prefill_time

    def encode(
        self,
        prompt: Prompt,
        images: Sequence[Any],
        videos: Sequence[Any],
        chat: bool,
        question: Prompt | None = None,
    ) -> PromptEmbeds:
        """All steps. The pictures are read before any model is waited for.

        Args:
            prompt, images, videos: as `Pipeline.stream` takes them.
            chat: put the prompt into the checkpoint's chat form.
            question: a prompt whose question steers the selection; None: that of `prompt`.

        Raises:
            RedipruneError: a bad image, video or prompt.
        """
        began = time.perf_counter()
        self._check_kinds(images, videos)
        self.processor = self.processor.of_images(len(images))
        if chat and self.processor.chat_template.warning is not None:
            self.warnings.append(self.processor.chat_template.warning)
        self.pulse()
        with self.clock("preprocess"):
            text = prompt_text(self.processor, prompt, len(images), len(videos), chat)
            media = self._read_media(media_order(self.processor, text, len(images), len(videos)), images, videos)
            text, parts = self.processor.expand(text, media)
            ids = encode_text(self.processor, text)
            self._check_ids(ids, [kind for kind, _ in media], parts)
        visuals = [
            replace(self._encode(kind, frames), parts=count) for (kind, frames), count in zip(media, parts, strict=True)
        ]
        embeds = self._embed(ids)  # [tokens, D]
        steering = self._question(ids, embeds) if question is None else self._question_of(question, chat)
        pruned, inserted = [], []
        text = len(ids) - sum(visual.parts for visual in visuals)
        for visual, kept in self.selector.select(visuals, steering, self._tokens_in_time(visuals, text, began)):
            self.pulse()
            pruned.append(visual)
            inserted += visual.inserted(self._project(visual, kept), self.axes)
        kept_tokens = sum(visual.tokens.embeds.shape[0] for visual in inserted)
        whole = splice(ids, embeds, inserted, self.axes)
        positions = Positions(whole.positions) if self.selection.positions == "original" else None
        return PromptEmbeds(whole.embeds, ids, pruned, kept_tokens, self.warnings, positions, whole.deepstack)

    def _check_kinds(self, images: Sequence[Any], videos: Sequence[Any]) -> None:
        for kind, given in (("image", images), ("video", videos)):
            if given and kind not in self.modalities:
                raise RedipruneError(
                    f"{self.family} answers about {' and '.join(self.modalities)}s only; "
                    f"give a {kind}'s frames as images, or use another checkpoint"
                )

    def _check_ids(self, ids: Sequence[int], kinds: Sequence[str], parts: Sequence[int]) -> None:
        """Hold the placeholder ids of a prompt against its media: a picture without one would not be seen."""
        for token in {spec.placeholder for spec in self.modalities.values()}:
            named = [kind for kind, spec in self.modalities.items() if spec.placeholder == token]
            given = sum(count for kind, count in zip(kinds, parts, strict=True) if kind in named)
            found = ids.count(token)
            if found != given:
                raise RedipruneError(
                    f"the encoded prompt holds {found} {named[0]} placeholders (token id {token}) in place of {given}: the "
                    "bundle's tokenizer and its manifest disagree; export the checkpoint again"
                )
        self._check_vocabulary(ids)

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        """Refuse a token without an embedding."""
        placeholders = {spec.placeholder for spec in self.modalities.values()}
        for token in ids:
            if token >= self.vocabulary and token not in placeholders:
                raise RedipruneError(
                    f"the prompt holds {self.processor.tokenizer.convert_ids_to_tokens(token)!r}, token {token} of the "
                    f"tokenizer, but the model has embeddings for {self.vocabulary} tokens only; leave it out, or export the "
                    "checkpoint with the tokenizer that belongs to it"
                )

    def _read_media(
        self, kinds: Sequence[str], images: Sequence[Any], videos: Sequence[Any]
    ) -> list[tuple[str, list[Image.Image]]]:
        """For each of the kinds: it, and the image or the video's frames."""
        sources = {"image": iter(images), "video": iter(videos)}
        pictures, pixels = [], 0
        for kind in kinds:
            source = next(sources[kind])
            self.pulse()
            if kind == "video":
                from .media.video import load_video  # imports FFmpeg, which pictures do without

                frames = load_video(source, self.selection.frames, self.limits, self.warnings.append, self.pulse)
            else:
                frames = [load_image(source, self.limits)]
            pixels += sum(width * height for width, height in {id(frame): frame.size for frame in frames}.values())
            if pixels > self.limits.request_pixels:
                raise RedipruneError(
                    f"the pictures and frames have more than {self.limits.request_pixels / 1e6:g} million pixels together: "
                    "give fewer or smaller ones, or raise the limit request_pixels (--limit)"
                )
            pictures.append((kind, frames))
        return pictures

    def _encode(self, kind: str, frames: list[Image.Image]) -> Visual:
        """pixels → features [F, P, C], from the cache where they were seen before."""
        spec, video, tolerance = self.modalities[kind], kind == "video", self.selection.frame_tolerance
        with self.clock("preprocess"):
            content = "".join(image_key(frame) for frame in frames)
            shown, rows = frames, None  # the frames that are encoded, and the one of them that each frame takes
            if video and tolerance is not None:
                from .media.video import stand_ins

                distinct, rows = np.unique(stand_ins(frames, tolerance), return_inverse=True)
                shown, content = [frames[at] for at in distinct], f"{content} {tolerance}"

        def run() -> Encoded:
            with self.clock("preprocess"):
                inputs = self.processor.vision_inputs(shown, video)
            pixels = inputs.pop("pixel_values")  # [frames or tiles, …]
            with self.clock("vision"):
                session = self.sessions.stage(spec.stage)
                starts = range(0, len(pixels), session.batch)
                outputs = []
                for at in starts:
                    self.pulse()
                    outputs.append(session.run({"pixel_values": pixels[at : at + session.batch], **inputs}))
                features = concatenate([each[spec.output] for each in outputs])
                if rows is not None:
                    features = take(features, rows)
                source = spec.rows_output or spec.mixed_output
                return Encoded(features, None if source is None else concatenate([each[source] for each in outputs]))

        grid = self.processor.grid(frames, video)
        content = f"{content} {grid or ''}{'whole' * self.processor.whole}"
        found, encoded = self.sessions.cache.get_or_encode((f"{spec.stage}.{spec.output}.{kind}", content), run)
        features = found.features
        count = 0 if not encoded else features.shape[0] if rows is None else len(shown)
        layout = self.processor.layout(frames, video, features.shape[1])
        everything = np.tile(np.arange(features.shape[1]), (features.shape[0], 1))
        pace = self.processor.pace(frames, video)
        return Visual(kind, frames, spec, features, layout, everything, count, grid=grid, rows=found.rows, pace=pace)

    def _embed(self, ids: Sequence[int]) -> Array:
        """Embeddings [S, D] of the text."""
        placeholders = {spec.placeholder for spec in self.modalities.values()}
        plain = [0 if token in placeholders else token for token in ids]  # a placeholder's own embedding is not used
        with self.clock("embed"):
            return self.sessions.stage("embed").run({"input_ids": np.array([plain])})["embeds"][0]

    def _question(self, ids: Sequence[int], embeds: Array) -> Array:
        """Of a prompt's embeddings [S, D] those of the question [L, D], which steers the selection."""
        placeholders = {spec.placeholder for spec in self.modalities.values()}
        question = embeds[len(ids) - len(query_ids(ids, placeholders)) :]
        return question if question.shape[0] else np.zeros((1, embeds.shape[1]), embeds.dtype)

    def _question_of(self, prompt: Prompt, chat: bool) -> Array:
        """The question [L, D] of another prompt."""
        parts = [] if isinstance(prompt, str) else [p for m in prompt for p in m["content"] if not isinstance(p, str)]
        images, videos = (sum(part["type"] == kind for part in parts) for kind in ("image", "video"))
        ids = prompt_ids(self.processor, prompt, images, videos, chat)
        self._check_vocabulary(ids)
        return self._question(ids, self._embed(ids))

    def _tokens_in_time(self, visuals: Sequence[Visual], text: int, began: float) -> int | None:
        """How many tokens of a frame may be kept so that the first token comes in time; None where no time is given.

        Args:
            visuals: encoded.
            text: tokens of the prompt's text.
            began: when the request came (`time.perf_counter`).
        """
        wanted = self.selection.first_token
        if wanted is None or not visuals:
            return None
        pruned = [visual for visual in visuals if not self.selector.keeps_whole(visual)]
        whole = text + sum(visual.total for visual in visuals if self.selector.keeps_whole(visual))
        frames = sum(visual.features.shape[0] for visual in pruned)
        spent = time.perf_counter() - began
        left = (1 - _RESERVE) * wanted - spent
        most = whole + sum(visual.total for visual in pruned)
        fits = self.prefill_time.longest_within(left, most) if left > 0 else 0
        if fits < whole + frames:
            self.warnings.append(
                f"the first token cannot come within {wanted * 1e3:.0f} ms here: the pictures take "
                f"{spent * 1e3:.0f} ms, and one token of each frame is kept; give fewer frames or more time"
            )
        return max(1, (fits - whole) // max(frames, 1))

    def _project(self, visual: Visual, kept: Array) -> Projected:
        """kept [F, K, C] → projected → tokens in the order the decoder reads them."""
        if visual.spec.mixed_output is not None:
            return Projected(visual.sequence(self._mixed(visual), self.newline))
        with self.clock("project"):
            outputs = self.sessions.stage("project").run(_projected_from(visual, kept))
        deepstack = outputs.get("deepstack")
        if deepstack is not None:  # [frames, taps, kept, width]
            added = np.asarray(deepstack).swapaxes(0, 1)
            deepstack = added.reshape(added.shape[0], -1, added.shape[3])
        return Projected(visual.sequence(outputs["visual_embeds"], self.newline), deepstack)

    def _mixed(self, visual: Visual) -> np.ndarray:
        """Of kept cells the patches → projected → the cells [F, K, D]."""
        features = np.asarray(visual.rows)  # [frames, patches, channels]
        assert isinstance(visual.kept, np.ndarray)  # `Selector` gives every frame as many
        with self.clock("project"):
            cells = KeptCells.of(visual.kept, (visual.spec.rows, visual.spec.columns), features.shape[1])
            outputs = self.sessions.stage("project").run({"kept": cells.gathered(features)})
            return cells.mixed(np.asarray(outputs["visual_embeds"]))


def _projected_from(visual: Visual, kept: Array) -> dict[str, Array]:
    """What the project stage takes for an image or a video."""
    frames = visual.features.shape[0]
    if visual.rows is not None:
        if isinstance(visual.kept, np.ndarray):
            return {"rows": visual.rows, "indices": visual.kept}
        rows = np.asarray(visual.rows).swapaxes(0, 1)  # [taps, frames, groups, width]; all frames as one
        return {"rows": rows.reshape(1, rows.shape[0], -1, rows.shape[3]), "indices": visual.slots[None]}
    if isinstance(visual.kept, np.ndarray):
        return {"kept": kept}
    # As many of each frame, the last token repeated: engines are built for so many tokens of a frame, not of a clip.
    tokens, channels = kept.shape[1:]
    each = -(-tokens // frames)
    if each * frames > tokens:
        filler = np.repeat(np.asarray(kept)[:, -1:], each * frames - tokens, axis=1)
        kept = np.concatenate([np.asarray(kept), filler], axis=1)
    return {"kept": kept.reshape(frames, each, channels)}
