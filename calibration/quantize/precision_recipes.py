"""Recipes: which quantization scheme each stage of a calibrated bundle takes, and what can run it."""

from collections.abc import Mapping, Sequence

from ...runtime.bundle import Limit
from ...runtime.errors import RedipruneError
from .schemes import SCHEMES

UNCHANGED = "unchanged"  # in place of a scheme: the stage stays as it is in the baseline
_KEEP = "keep"  # what earlier versions called it

# Shorthand → stage → scheme. `select` is float32 in every recipe, `embed` is a table that is only looked up.
_STAGES = ("vision", "project", "language")
RECIPES: dict[str, dict[str, str]] = {
    "int8": dict.fromkeys(_STAGES, "int8"),
    **{scheme: dict.fromkeys(_STAGES, scheme) for scheme in ("int8-dynamic", "int8-weights")},
    "fp8": dict.fromkeys(_STAGES, "fp8"),
    **{half: dict.fromkeys((*_STAGES, "embed"), half) for half in ("fp16", "bf16")},
    "int4": {"vision": "int8", "project": "int8", "language": "int4"},
}
_FIXED = {
    "select": "always computes in fp32",
    "select_clip": "always computes in fp32",
    "embed": "only looks up a table",
}
_TENSORRT = ("tensorrt", "tensorrt-rtx")


def parse_recipe(text: str, stages: Sequence[str]) -> dict[str, str]:
    """Read a recipe: a shorthand ("int8"), single stages ("vision=int8,language=int4"), or both, later parts first.

    A tower of its own for videos (`vision_video`) follows `vision` unless it is named.

    Args:
        text: parts separated by commas; STAGE=unchanged leaves a stage as it is.
        stages: of the bundle.

    Returns:
        Stage → scheme, of the stages that change, in the order of `stages`.

    Raises:
        RedipruneError: an unknown shorthand, stage or scheme, or nothing to do.
    """
    chosen: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        stage, given, scheme = part.partition("=")
        if not given:
            if stage not in RECIPES:
                raise RedipruneError(
                    f"recipe '{stage}' is not known; choose one of {', '.join(RECIPES)}, or STAGE=SCHEME"
                )
            chosen |= RECIPES[stage]
        else:
            chosen[stage] = _checked(stage, UNCHANGED if scheme == _KEEP else scheme, stages)
    if "vision_video" in stages and "vision" in chosen:
        chosen.setdefault("vision_video", chosen["vision"])
    recipe = {stage: chosen[stage] for stage in stages if chosen.get(stage, UNCHANGED) != UNCHANGED}
    if not recipe:
        raise RedipruneError(f"recipe '{text}' changes no stage; name a scheme, e.g. --recipe int8")
    return recipe


def _checked(stage: str, scheme: str, stages: Sequence[str]) -> str:
    """The scheme, if the stage can take it."""
    if stage not in stages:
        raise RedipruneError(f"stage '{stage}' is not one of this bundle's: {', '.join(stages)}")
    halved = stage == "embed" and scheme in ("fp16", "bf16")
    if stage in _FIXED and scheme != UNCHANGED and not halved:
        raise RedipruneError(f"stage '{stage}' {_FIXED[stage]}; leave it out of the recipe")
    if scheme != UNCHANGED and scheme not in SCHEMES:
        raise RedipruneError(f"scheme '{scheme}' is not known; choose one of {', '.join((*SCHEMES, UNCHANGED))}")
    return scheme


def limits_of(recipe: Mapping[str, str]) -> list[Limit]:
    """List what cannot take a bundle of this recipe, in sentences that a user can act on."""
    limits = []
    for name in dict.fromkeys(recipe.values()):
        scheme = SCHEMES[name]
        for backend, why in scheme.refused.items():
            limits.append(Limit(backend=backend, scheme=name, says=f"{backend} does not take {name}: {why}"))
        least = scheme.min_compute_capability
        if least is None:
            continue
        says = f"{name} needs a GPU of {least} or newer; leave older ones out of --target, or choose another recipe"
        limits += [Limit(backend=b, scheme=name, below=least, says=says) for b in _TENSORRT if b not in scheme.refused]
    return limits
