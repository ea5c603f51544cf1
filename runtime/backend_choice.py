"""Which backend runs each stage: the one asked for, or with "auto" the fastest of those at hand.

Without a measurement `auto` goes by rules, each from a table of docs/measurements: engines of TensorRT where they were
built and can run, then ONNX Runtime on the GPU; on the CPU ONNX Runtime, but OpenVINO in bfloat16 for quantised towers
where the processor multiplies it. What a bundle promises is kept: bfloat16 is for stages whose error was measured when they
were quantised, never for fp32 ones. `rediprune optimize` measures, and leaves its plan in the manifest.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .backends.gpu import compute_capability
from .backends.session import BACKENDS, runs_on
from .bundle import Bundle, PlanRecord
from .errors import RedipruneError
from .machine import fingerprint, has_bf16

AUTO = "auto"
_ENGINES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # backend → module, the faster first


@dataclass(frozen=True)
class Choice:
    """What runs a stage, and why.

    Attributes:
        backend: one of `BACKENDS`.
        reason: a part of a sentence: "asked for", "the fastest here of …".
    """

    backend: str
    reason: str


def choose_backends(
    bundle: Bundle, backend: str | Mapping[str, str] = AUTO, eager: Collection[str] = ()
) -> dict[str, Choice]:
    """Stage → what runs it.

    Args:
        bundle: the bundle.
        backend: "auto", a backend, or a backend for each stage; "default", itself "auto", is for stages not named.
        eager: stages that run in eager PyTorch instead.

    Raises:
        RedipruneError: a stage or backend that is not known, or one that a calibrated bundle cannot run on.
    """
    stages = list(bundle.manifest.stages)
    asked = {"default": backend} if isinstance(backend, str) else {"default": AUTO, **backend}
    check_stages([*eager, *(stage for stage in asked if stage != "default")], stages)
    for name in asked.values():
        if name != AUTO and name not in BACKENDS:
            raise RedipruneError(f"backend '{name}' is not known; choose one of: {AUTO}, {', '.join(BACKENDS)}")
    automatic = _Automatic(bundle)
    chosen: dict[str, Choice] = {}
    for stage in stages:
        name = "eager" if stage in eager else asked.get(stage, asked["default"])
        chosen[stage] = automatic.choice(stage) if name == AUTO else _as_asked(bundle, name, stage)
    return chosen


def describe_backends(backends: Mapping[str, str]) -> str:
    """The backends of all stages in a few words: "ort", or "vision on openvino-bf16, all else on ort"."""
    names = list(backends.values())
    usual = max(dict.fromkeys(names), key=names.count)
    others = [f"{stage} on {name}" for stage, name in backends.items() if name != usual]
    return ", ".join([*others, f"all else on {usual}"]) if others else usual


def check_stages(named: Iterable[str], stages: Collection[str]) -> None:
    """Refuse names that are no stages.

    Raises:
        RedipruneError: one of `named` is not one of `stages`.
    """
    unknown = sorted(set(named) - set(stages))
    if unknown:
        raise RedipruneError(f"stage '{unknown[0]}' is not one of this bundle's: {', '.join(stages)}")


def _as_asked(bundle: Bundle, backend: str, stage: str) -> Choice:
    name = runs_on(backend, stage)
    if (refusal := _refusal(bundle, name, stage)) is not None:
        raise RedipruneError(refusal)
    return Choice(name, "asked for" if name == backend else f"{backend} cannot read its graph")


def _refusal(bundle: Bundle, backend: str, stage: str) -> str | None:
    record = bundle.manifest.calibration
    return None if record is None else record.refusal(backend, stage=stage)


class _Automatic:
    """The choice of `auto` for the stages of a bundle on this machine."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle

    @cached_property
    def gpu(self) -> str:
        """Compute capability; asked for only where `auto` chooses, as the driver takes its time."""
        return _gpu()

    def choice(self, stage: str) -> Choice:
        """By the bundle's plan where it was made on a machine like this one, else by rule."""
        plan, without = self.bundle.manifest.plan, ""
        if plan is not None and stage in plan.backends:
            name = plan.backends[stage]
            if plan.machine != fingerprint():
                without = f"; the bundle's plan is for another machine ({plan.machine})"
            elif (missing := missing_for(name) or _other_version(plan)) is not None:
                without = f"; the bundle's plan has {name}, and {missing}"
            else:
                return Choice(name, f"measured by rediprune optimize: {plan.reasons.get(stage, 'the fastest')}")
        found = self._by_rule(stage)
        return Choice(found.backend, found.reason + without)

    def _by_rule(self, stage: str) -> Choice:
        for name in _ENGINES if self.gpu else ():
            if self._has_engine(name, stage):
                return Choice(name, f"its engine was built for a GPU like the one here ({self.gpu})")
        own = runs_on("ort-cuda", stage) == "ort-cuda"
        if self.gpu and own and _has_cuda_provider() and _refusal(self.bundle, "ort-cuda", stage) is None:
            return Choice("ort-cuda", f"there is a GPU ({self.gpu}) and no engine for it")
        spec, record = self.bundle.manifest.stages[stage], self.bundle.manifest.calibration
        towers = {modality.stage for modality in self.bundle.manifest.modalities.values()}
        measured = record is not None and record.fidelity.get(stage) is not None
        if stage in towers and spec.precision == "int8" and measured and has_bf16() and missing_for("openvino") is None:
            return Choice("openvino-bf16", "the processor multiplies bfloat16, which suits a tower quantised with Q/DQ")
        refusal = _refusal(self.bundle, "ort", stage)
        if refusal is not None:
            raise RedipruneError(refusal)
        return Choice("ort", "the fastest on a CPU by rule")

    def _has_engine(self, backend: str, stage: str) -> bool:
        engine = self.bundle.manifest.engines.get(backend)
        return (
            engine is not None
            and stage in engine.stages
            and engine.source_sha256.get(stage) == self.bundle.manifest.stages[stage].sha256
            and self.gpu in engine.compute_capability
            and find_spec(_ENGINES[backend]) is not None
        )


def _other_version(plan: PlanRecord) -> str | None:
    """What of the libraries that a plan was measured with is here in another version; releases of fixes count as one."""
    for name, measured in plan.versions.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
        if found.split(".")[:2] != measured.split(".")[:2]:
            return f"{name} is {found} here and was {measured} when it was measured"
    return None


def missing_for(backend: str) -> str | None:
    """What a backend lacks on this machine, in a few words; None where it can be opened."""
    needed = {"openvino": "openvino", "openvino-bf16": "openvino", **_ENGINES}.get(backend)
    if needed is not None and find_spec(needed) is None:
        return f"{needed} is not installed"
    if backend == "openvino-bf16" and not has_bf16():
        return "the processor has no bfloat16"
    if backend in (*_ENGINES, "ort-cuda", "kernel") and not _gpu():
        return "there is no GPU"
    return "onnxruntime-gpu is not installed" if backend == "ort-cuda" and not _has_cuda_provider() else None


def _gpu() -> str:
    """Compute capability of the GPU, e.g. "sm_89"; "" where there is none."""
    try:
        return compute_capability(AUTO)
    except RedipruneError:
        return ""


def _has_cuda_provider() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
