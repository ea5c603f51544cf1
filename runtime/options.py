"""What a request may ask for: which visual tokens are kept, and how the answer is generated.

Every setting is checked here and nowhere else: the options objects check what they are given, and `generate.Sampling`
checks by the same rules what a checkpoint's generation config says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypedDict

from ..graphs.selection.counts import check_weights, num_kept
from .bundle import KeepDefaults
from .errors import RedipruneError
from .positions import POSITIONS

DEFAULT_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """Which visual tokens are kept.

    Attributes:
        frames: frames sampled from each video, evenly; None is the checkpoint's number, or 8.
        keep: float, the ratio of visual tokens kept in each frame, 1.0 for all; int, their number; None is the
            bundle's default.
        alpha: weight of relevance against diversity, at least 0; None is the bundle's default.
        tau: candidate filter, 0 is off; None is the bundle's default.
        frame_tolerance: a video's frame takes the features of an earlier one where no part of it differs by more than
            this, in colour levels of 255 (`media.video.stand_ins`); 0 is for equal frames, None encodes every frame.
        prune_tiles: prune images that are seen in tiles too (the release does not).
        positions: what the decoder takes for the kept tokens' positions: "compact", one after another, as the release has
            it; "original", where they stood among all of them, the text behind them going on after them all; None is the
            bundle's default.
        min_pixels, max_pixels: bounds of the pixels that pictures and videos are scaled to, for families whose pictures
            have any size (Qwen-VL); None is the checkpoint's, whose most neither may exceed. Of a video they are of each
            frame, with Qwen3-VL of all frames together.

    Raises:
        RedipruneError: a setting is not in its range.
    """

    frames: int | None = None
    keep: float | int | None = None
    alpha: float | None = None
    tau: float | None = None
    frame_tolerance: float | None = None
    prune_tiles: bool = False
    positions: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "frame_tolerance", "prune_tiles", "positions", "min_pixels", "max_pixels"):
            check_setting(name, getattr(self, name))
        try:
            check_weights(0.0 if self.alpha is None else self.alpha, 0.0 if self.tau is None else self.tau)
            # Whether a frame has as many tokens as a count asks for is known when the frame is.
            if self.keep is not None and not (_is_whole(self.keep) and self.keep > 0):
                num_kept(1, self.keep)
        except ValueError as error:
            raise RedipruneError(str(error)) from error

    def resolved(self, defaults: KeepDefaults, frames: int | None) -> "Selection":
        """The settings of a selection, with a bundle's defaults where nothing else is asked for.

        Args:
            defaults: the bundle's.
            frames: the number of frames that the checkpoint asks for, if it does.
        """
        return Selection(
            frames=self.frames or frames or DEFAULT_FRAMES,
            keep=defaults.keep if self.keep is None else self.keep,
            alpha=defaults.alpha if self.alpha is None else self.alpha,
            tau=defaults.tau if self.tau is None else self.tau,
            frame_tolerance=self.frame_tolerance,
            prune_tiles=self.prune_tiles,
            positions=defaults.positions if self.positions is None else self.positions,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class Selection:
    """`SelectOptions` with nothing left open."""

    frames: int
    keep: float | int
    alpha: float
    tau: float
    frame_tolerance: float | None
    prune_tiles: bool
    positions: str
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How an answer is generated. None leaves a setting to the checkpoint's generation config.

    Attributes:
        max_new_tokens: at most this many tokens.
        temperature: 0 is greedy, whatever else is given; above 0 samples.
        top_k: sample among the k most likely tokens; 0 is off. Given alone it samples, at temperature 1 where the
            generation config has none.
        top_p: sample among the most likely tokens of this mass, in (0, 1]. Given alone it samples, like `top_k`.
        min_p: sample among the tokens that are at least this share as likely as the likeliest, in [0, 1]. Above 0 and given
            alone it samples, like `top_k`.
        repetition_penalty: above 1 repeats less, the prompt's tokens included.
        presence_penalty: in [−2, 2]; taken off the logit of every token that the answer has already (OpenAI's definition).
        frequency_penalty: likewise, as often as the answer has the token.
        seed: of sampling; None differs from call to call. Given alone it samples, like `top_k`.
        stop: strings that end the answer, besides the generation config's; one string, or several.
        chat: put the question into the checkpoint's chat form; False takes the prompt as it is.

    Raises:
        RedipruneError: a setting is not in its range.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    chat: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens is None:
            raise RedipruneError("max_new_tokens must be a number; leave it out for 128")
        check_setting("max_new_tokens", self.max_new_tokens)
        for name, value in self.sampling.items():
            check_setting(name, value)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(string, str) for string in stop):
            raise RedipruneError(f"stop takes strings, not {self.stop!r}")
        object.__setattr__(self, "stop", stop)

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings that choose a token, by name."""
        apart = ("max_new_tokens", "stop", "chat")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}


class SelectKeywords(TypedDict, total=False):
    """`SelectOptions` as keywords of a call."""

    frames: int | None
    keep: float | int | None
    alpha: float | None
    tau: float | None
    frame_tolerance: float | None
    prune_tiles: bool
    positions: str | None
    min_pixels: int | None
    max_pixels: int | None


class AnswerKeywords(SelectKeywords, total=False):
    """`SelectOptions` and `GenerateOptions` as keywords of a call."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: Sequence[str]
    chat: bool


def merge_keywords(
    selection: SelectOptions | None, generation: GenerateOptions | None, keywords: Mapping[str, Any]
) -> tuple[SelectOptions, GenerateOptions]:
    """The options of a call: its objects, with what its keywords say besides.

    Raises:
        RedipruneError: a setting is not in its range.
        TypeError: a keyword that neither of them has.
    """
    selecting = {field.name for field in fields(SelectOptions)}
    ours = {name: value for name, value in keywords.items() if name in selecting}
    others = {name: value for name, value in keywords.items() if name not in selecting}
    return replace(selection or SelectOptions(), **ours), replace(generation or GenerateOptions(), **others)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "frames": (lambda value: _is_whole(value) and value >= 1, "a whole number, at least 1"),
    "frame_tolerance": (lambda value: _is_number(value) and value >= 0, "at least 0"),
    "prune_tiles": (lambda value: isinstance(value, bool), "true or false"),
    "positions": (lambda value: value in POSITIONS, " or ".join(POSITIONS)),
    **dict.fromkeys(
        ("min_pixels", "max_pixels"),
        (lambda value: _is_whole(value) and value >= 1, "a whole number of pixels, at least 1"),
    ),
    "max_new_tokens": (lambda value: _is_whole(value) and value >= 1, "a whole number, at least 1"),
    "temperature": (lambda value: _is_number(value) and value >= 0, "≥ 0 (0 is greedy)"),
    "top_k": (lambda value: _is_whole(value) and value >= 0, "a whole number ≥ 0 (0 is off)"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "min_p": (lambda value: _is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "> 0"),
    "presence_penalty": (lambda value: _is_number(value) and -2 <= value <= 2, "from -2 to 2"),
    "frequency_penalty": (lambda value: _is_number(value) and -2 <= value <= 2, "from -2 to 2"),
    "seed": (lambda value: _is_whole(value) and value >= 0, "a whole number ≥ 0"),
}


def check_setting(name: str, value: Any) -> None:
    """Refuse a setting that is out of its range; None, which leaves it open, is not.

    Raises:
        RedipruneError: names the setting, what it must be and what it is.
    """
    good, rule = _RULES[name]
    if value is not None and not good(value):
        raise RedipruneError(f"{name} must be {rule}, not {value}")
