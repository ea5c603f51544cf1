"""The forms that stages are tried in, and the backends that may run them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...runtime.backend_choice import missing_for
from ...runtime.bundle import Bundle
from .gpu_forms import BACKENDS as GPU_BACKENDS
from .gpu_forms import gpu_recipes

# Recipes whose stages are tried: each tower's and the decoder's form in turn. Stages do not depend on each other, so that
# any tower goes with any decoder. Static INT8 of a decoder is not among them: at real geometry its logits are 16 to 26 %
# off, and few samples give its ranges (docs/calibration.md).
_RECIPES = (("int8", "int8-dynamic"), ("int8-dynamic", "int8-weights"), ("int8-weights", "int4"))
TRIED_BACKENDS = ("ort", "openvino", "openvino-bf16", *GPU_BACKENDS)


@dataclass(frozen=True)
class Candidate:
    """A stage in one form on one backend.

    Attributes:
        stage: its name.
        precision: a quantization scheme, or the source's precision.
        backend: what would run it.
        bundle: that has the stage in this form.
    """

    stage: str
    precision: str
    backend: str
    bundle: Bundle


def towers_of(bundle: Bundle) -> list[str]:
    """The bundle's vision stages."""
    return list(dict.fromkeys(modality.stage for modality in bundle.manifest.modalities.values()))


def recipes(bundle: Bundle) -> Iterator[str]:
    """Recipes of `rediprune calibrate` that together have every form of every stage."""
    for tower, decoder in (*_RECIPES, *gpu_recipes()):
        parts = [f"{stage}={tower}" for stage in towers_of(bundle)]
        yield ",".join([*parts, f"language={decoder}"])


def candidates(source: Bundle, made: Sequence[Bundle]) -> list[Candidate]:
    """All that may be timed: the towers and the decoder of the source and of bundles calibrated from it."""
    found: dict[tuple[str, str, str], Candidate] = {}
    for bundle in (source, *made):
        record = bundle.manifest.calibration
        for stage in (*towers_of(bundle), "language"):
            precision = bundle.manifest.stages[stage].precision
            unchanged = precision == source.manifest.stages[stage].precision
            for backend in TRIED_BACKENDS:
                if backend == "openvino-bf16" and unchanged:
                    continue  # what is promised in float32 is not computed in bfloat16
                if record is not None and record.refusal(backend, stage=stage) is not None:
                    continue
                if missing_for(backend) is None:
                    key = (stage, precision, backend)
                    found.setdefault(key, Candidate(stage, precision, backend, bundle))
    return list(found.values())
