"""What a request may ask for: which visual tokens are kept, and how the answer is generated.

Every setting is checked here and nowhere else: the options objects check what they are given, and `generate.Sampling`
checks by the same rules what a checkpoint's generation config says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, TypedDict

from ..graphs.selection.counts import check_weights, num_kept
from .bundle import SCOPES, AutoKeep, KeepDefaults
from .errors import RedipruneError
from .positions import POSITIONS

DEFAULT_FRAMES = 8
AUTO_KEEP = "auto"
_UNITS = {"ms": 1e-3, "s": 1.0}


_CHECKED = (
    *("frames", "frame_tolerance", "prune_tiles", "positions"),
    *("min_pixels", "max_pixels", "scope", "min_per_frame"),
)


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """Which visual tokens are kept.

    Attributes:
        frames: frames sampled from each video, evenly; None is the checkpoint's number, or 8.
        keep: float, the ratio of visual tokens kept in each frame, 1.0 for all; int, their number; "auto", as many as the
            picture is worth, by the threshold that `rediprune calibrate --keep-auto` found; None is the bundle's default.
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
        scope: "frame", each frame has its own budget, as the release has it, the default; "clip", one budget for all frames
            of a video, and for all images of one size together: `keep` is then the mean of the frames.
        min_per_frame: tokens kept of each frame at least, where frames differ in number (scope "clip", keep "auto"); None is 1.
        first_token: seconds, or "300ms": as many tokens are kept as let the first token come in this time, at most `keep`; by
            what the language model takes on this machine, measured when first asked for.

    Raises:
        RedipruneError: a setting is not in its range, or two contradict each other.
    """

    frames: int | None = None
    keep: float | int | str | None = None
    alpha: float | None = None
    tau: float | None = None
    frame_tolerance: float | None = None
    prune_tiles: bool = False
    positions: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    scope: str | None = None
    min_per_frame: int | None = None
    first_token: float | str | None = None

    def __post_init__(self) -> None:
        for name in _CHECKED:
            check_setting(name, getattr(self, name))
        if self.first_token is not None:
            object.__setattr__(self, "first_token", parse_seconds(self.first_token))
        try:
            check_weights(0.0 if self.alpha is None else self.alpha, 0.0 if self.tau is None else self.tau)
            # Whether a frame has as many tokens as a count asks for is known when the frame is.
            if isinstance(self.keep, str):
                if self.keep != AUTO_KEEP:
                    raise RedipruneError(
                        f"keep must be a ratio, a number of tokens, or '{AUTO_KEEP}', not '{self.keep}'"
                    )
            elif self.keep is not None and not (_is_whole(self.keep) and self.keep > 0):
                num_kept(1, self.keep)
        except ValueError as error:
            raise RedipruneError(str(error)) from error
        self._check_together(self.tau or 0.0)

    def _check_together(self, tau: float) -> None:
        """Refuse settings that contradict each other."""
        apart = self.scope == "clip" or self.keep == AUTO_KEEP  # frames differ in number
        if self.min_per_frame is not None and not apart:
            raise RedipruneError(
                "min_per_frame is for scope 'clip' and keep 'auto': else each frame keeps equally many"
            )
        if tau > 0 and apart:
            raise RedipruneError("tau filters the tokens of one frame: with scope 'clip' or keep 'auto' it must be 0")
        if self.first_token is not None and self.keep == AUTO_KEEP:
            raise RedipruneError("first_token and keep 'auto' both say how many tokens are kept; give one of them")

    def resolved(self, defaults: KeepDefaults, frames: int | None, auto: AutoKeep | None = None) -> "Selection":
        """The settings of a selection, with a bundle's defaults where nothing else is asked for.

        Args:
            defaults: the bundle's.
            frames: the number of frames that the checkpoint asks for, if it does.
            auto: what the bundle was calibrated to keep on its own.

        Raises:
            RedipruneError: keep is "auto", and the bundle was not calibrated for it; or a default contradicts a setting.
        """
        tau = defaults.tau if self.tau is None else self.tau
        self._check_together(tau)
        scope = self.scope or "frame"
        keep, threshold = defaults.keep if self.keep is None else self.keep, -inf
        if self.first_token is not None and self.keep is None:
            keep = 1.0  # as many as there is time for
        if isinstance(keep, str):
            found = None if auto is None else auto.thresholds.get("clip" if scope == "clip" else "frame")
            if auto is None or found is None:
                raise RedipruneError(
                    f"keep '{AUTO_KEEP}' needs a threshold for scope '{scope}', which this bundle has not; calibrate it: "
                    "rediprune calibrate BUNDLE --keep-auto accuracy=1"
                )
            keep, threshold = auto.most, found
        return Selection(
            frames=self.frames or frames or DEFAULT_FRAMES,
            keep=keep,
            alpha=defaults.alpha if self.alpha is None else self.alpha,
            tau=tau,
            frame_tolerance=self.frame_tolerance,
            prune_tiles=self.prune_tiles,
            positions=defaults.positions if self.positions is None else self.positions,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            scope=scope,
            min_per_frame=self.min_per_frame or 1,
            threshold=threshold,
            first_token=None if self.first_token is None else float(self.first_token),
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
    scope: str = "frame"
    min_per_frame: int = 1
    threshold: float = -inf
    first_token: float | None = None

    @property
    def stops(self) -> bool:
        """Whether the choice may end before `keep` is reached."""
        return self.threshold > -inf

    @property
    def over_clip(self) -> bool:
        """Whether frames may keep different numbers of tokens: what the stage `select_clip` is for."""
        return self.scope == "clip" or self.stops


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
    keep: float | int | str | None
    alpha: float | None
    tau: float | None
    frame_tolerance: float | None
    prune_tiles: bool
    positions: str | None
    min_pixels: int | None
    max_pixels: int | None
    scope: str | None
    min_per_frame: int | None
    first_token: float | str | None


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


def parse_seconds(value: Any) -> float:
    """A time in seconds: a number, or a text with a unit, "300ms" or "1.5s".

    Raises:
        RedipruneError: it is neither, or not above 0.
    """
    text = str(value).strip().lower()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        seconds = 0.0
    if isinstance(value, bool) or not isfinite(seconds) or seconds <= 0:
        raise RedipruneError(f"first_token must be a time such as 300ms, 1.5s or 0.3 (seconds), not {value!r}")
    return seconds


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
    "scope": (lambda value: value in SCOPES, " or ".join(SCOPES)),
    "min_per_frame": (lambda value: _is_whole(value) and value >= 1, "a whole number, at least 1"),
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
