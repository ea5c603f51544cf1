"""Recipes: which form each stage of a calibrated bundle takes, and what can run it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...runtime.bundle import Limit
from ...runtime.errors import RedipruneError

AS_IT_IS = "keep"


@dataclass(frozen=True)
class Form:
    """A way to store and compute the linear layers of a stage.

    Attributes:
        summary: what it is, in a few words.
        data: "needed" where it is made from activations, "used" where these make it better, "" where they do not count.
        refused: backend → why it does not take the form.
        least: the least compute capability of GPUs whose TensorRT takes it.
        from_fp32: whether only an fp32 bundle can be made into it.
        single_layers: whether each layer can be in it or not.
    """

    summary: str
    data: str
    refused: Mapping[str, str] = field(default_factory=dict)
    least: str | None = None
    from_fp32: bool = False
    single_layers: bool = True


_CPU_ONLY = "its operators are ONNX Runtime's own for CPUs; choose int8"
_NO_BF16 = "it has no bf16 products; choose fp16"
FORMS = {
    "int8": Form("static INT8 Q/DQ, one scale per activation tensor and per output channel", "needed"),
    "int8-dynamic": Form(
        "INT8 with a scale for each token, taken as it comes",
        "",
        dict.fromkeys(("tensorrt", "tensorrt-rtx", "ort-cuda", "openvino"), _CPU_ONLY),
        from_fp32=True,
    ),
    "fp8": Form("static FP8 (E4M3) Q/DQ; ONNX Runtime emulates it, slower than fp32", "needed", least="sm_89"),
    "int4": Form("INT4 weights in blocks of 16 to 128 inputs; products as they were", "used", least="sm_80"),
    "fp16": Form("half precision; norms, softmax and angles in fp32", "", from_fp32=True, single_layers=False),
    "bf16": Form(
        "bfloat16; norms, softmax and angles in fp32",
        "",
        dict.fromkeys(("ort", "ort-cuda", "openvino"), _NO_BF16),
        least="sm_80",
        from_fp32=True,
        single_layers=False,
    ),
}

# Shorthand → stage → form. `select` is float32 in every recipe, `embed` is a table that is only looked up.
_STAGES = ("vision", "project", "language")
RECIPES: dict[str, dict[str, str]] = {
    "int8": dict.fromkeys(_STAGES, "int8"),
    "int8-dynamic": dict.fromkeys(_STAGES, "int8-dynamic"),
    "fp8": dict.fromkeys(_STAGES, "fp8"),
    **{half: dict.fromkeys((*_STAGES, "embed"), half) for half in ("fp16", "bf16")},
    "int4": {"vision": "int8", "project": "int8", "language": "int4"},
}
_FIXED = {"select": "always computes in fp32", "embed": "only looks up a table"}
_TENSORRT = ("tensorrt", "tensorrt-rtx")


def parse_recipe(text: str, stages: Sequence[str]) -> dict[str, str]:
    """Stage → form, of a shorthand ("int8") and settings of single stages ("vision=int8,language=int4"), later ones first.

    A tower of its own for videos (`vision_video`) follows `vision` unless it is named.

    Raises:
        RedipruneError: an unknown shorthand, stage or form, or nothing to do.
    """
    chosen: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        stage, given, form = part.partition("=")
        if not given:
            if stage not in RECIPES:
                raise RedipruneError(
                    f"recipe '{stage}' is not known; choose one of {', '.join(RECIPES)}, or STAGE=FORM"
                )
            chosen |= RECIPES[stage]
            continue
        if stage not in stages:
            raise RedipruneError(f"stage '{stage}' is not one of this bundle's: {', '.join(stages)}")
        halved = stage == "embed" and form in ("fp16", "bf16")
        if stage in _FIXED and form != AS_IT_IS and not halved:
            raise RedipruneError(f"stage '{stage}' {_FIXED[stage]}; leave it out of the recipe")
        if form != AS_IT_IS and form not in FORMS:
            raise RedipruneError(f"form '{form}' is not known; choose one of {', '.join((*FORMS, AS_IT_IS))}")
        chosen[stage] = form
    if "vision_video" in stages and "vision" in chosen:
        chosen.setdefault("vision_video", chosen["vision"])
    recipe = {stage: chosen[stage] for stage in stages if chosen.get(stage, AS_IT_IS) != AS_IT_IS}
    if not recipe:
        raise RedipruneError(f"recipe '{text}' changes no stage; name a form, e.g. --recipe int8")
    return recipe


def limits_of(recipe: Mapping[str, str]) -> list[Limit]:
    """What cannot take a bundle of this recipe, in sentences that a user can act on."""
    limits = []
    for name in dict.fromkeys(recipe.values()):
        form = FORMS[name]
        for backend, why in form.refused.items():
            limits.append(Limit(backend=backend, says=f"{backend} does not take {name}: {why}"))
        if form.least is None:
            continue
        says = (
            f"{name} needs a GPU of {form.least} or newer; leave older ones out of --target, or choose another recipe"
        )
        limits += [Limit(backend=b, below=form.least, says=says) for b in _TENSORRT if b not in form.refused]
    return limits
