"""From what was measured to the mixes that fit a budget, the best first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ...runtime.errors import RedipruneError
from .optimize_settings import OptimizeSettings
from .stage_timing import Timed

# Bytes in memory for each byte of weights: OpenVINO keeps the mapped file and a packed copy.
_COPIES = {"openvino": 2.0, "openvino-bf16": 2.0}
_OTHERWISE = 1.0
_BATCHES = ("ort",)  # decodes many requests in one call, which the server does
_EXACT_ERROR = 1e-3  # float32 sums in another order, accumulated over a stage's layers


@dataclass(frozen=True)
class Mix:
    """One form for each stage that has several.

    Attributes:
        parts: what was measured of each.
        cost: what the target makes least: seconds, or bytes on disk.
    """

    parts: tuple[Timed, ...]
    cost: float

    @property
    def recipe(self) -> dict[str, str]:
        """Stage → precision."""
        return {part.candidate.stage: part.candidate.precision for part in self.parts}

    @property
    def backends(self) -> dict[str, str]:
        """Stage → backend."""
        return {part.candidate.stage: part.candidate.backend for part in self.parts}

    def __str__(self) -> str:
        return ", ".join(f"{stage} {form} on {self.backends[stage]}" for stage, form in self.recipe.items())


def rejection(one: Timed, settings: OptimizeSettings, source_precision: str) -> str:
    """Why a form is out before any is chosen, in a few words; "" where it is not."""
    if one.fault:
        return one.fault
    if settings.target == "throughput" and one.candidate.stage == "language" and one.candidate.backend not in _BATCHES:
        return "answers one request at a time"
    if one.candidate.precision == source_precision:
        off = one.error is not None and one.error > _EXACT_ERROR
        return f"differs by {one.error:.2%} from the source" if off else ""
    if settings.bound is None:
        return "not exact"
    if one.error is None:
        return "its error is not known: no held-out sample reaches it"
    return f"error above {settings.largest_error:.0%}" if one.error > settings.largest_error else ""


def ranked_mixes(timed: Sequence[Timed], settings: OptimizeSettings, source_precision: str) -> list[Mix]:
    """All mixes within the bounds of error and memory, the best first.

    Args:
        timed: what was measured of every candidate.
        settings: target and bounds.
        source_precision: what an exact mix keeps.

    Raises:
        RedipruneError: there is none; the message says what comes nearest.
    """
    stages: dict[str, list[Timed]] = {}
    for one in timed:
        forms = stages.setdefault(one.candidate.stage, [])
        if not rejection(one, settings, source_precision):
            forms.append(one)
    for stage, forms in stages.items():
        if not forms:
            raise RedipruneError(f"no form of '{stage}' is within {settings.budget}: {_nearest(timed, stage)}")
    mixes = [Mix(parts, _cost(parts, settings)) for parts in product(*stages.values())]
    fitting = [mix for mix in mixes if settings.memory is None or memory_of(mix) <= settings.memory]
    if not fitting:
        least = min(mixes, key=memory_of)
        raise RedipruneError(
            f"no mix within {settings.budget} fits into {settings.memory / 1e9:.2f} GB of weights: the smallest ({least}) "  # type: ignore[operator]
            f"takes {memory_of(least) / 1e9:.2f}; allow more memory, or a larger budget"
        )
    return sorted(fitting, key=lambda mix: mix.cost)


def memory_of(mix: Mix) -> float:
    """Bytes that a mix's weights take when loaded, those of stages without a choice included."""
    manifest = mix.parts[0].candidate.bundle.manifest
    chosen = {part.candidate.stage: part for part in mix.parts}
    others = sum(spec.weight_bytes for name, spec in manifest.stages.items() if name not in chosen)
    return others + sum(_COPIES.get(part.candidate.backend, _OTHERWISE) * size_of(part) for part in chosen.values())


def size_of(one: Timed) -> int:
    """Bytes of a form's weights."""
    return one.candidate.bundle.manifest.stages[one.candidate.stage].weight_bytes


def _cost(parts: Sequence[Timed], settings: OptimizeSettings) -> float:
    if settings.target == "size":
        return float(sum(map(size_of, parts)))
    return sum(part.seconds + settings.further_tokens * part.per_token for part in parts)


def _nearest(timed: Sequence[Timed], stage: str) -> str:
    errors = {
        f"{one.candidate.precision} on {one.candidate.backend}": one.error
        for one in timed
        if one.candidate.stage == stage and one.error is not None and not one.fault
    }
    if not errors:
        return next((one.fault for one in timed if one.candidate.stage == stage and one.fault), "none could run")
    name = min(errors, key=lambda form: errors[form] or 0.0)
    return f"{name} comes nearest, with an error of {errors[name]:.2%}"


def changed_stages(recipe: Mapping[str, str], source_precision: str) -> dict[str, str]:
    """The stages of a recipe that change."""
    return {stage: form for stage, form in recipe.items() if form != source_precision}
