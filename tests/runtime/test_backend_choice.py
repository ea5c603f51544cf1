"""What `auto` runs each stage on, by the processor, the GPU and what is installed; and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime import Pipeline, backend_choice
from rediprune.runtime.backend_choice import choose_backends, describe_backends
from rediprune.runtime.bundle import Bundle, CalibrationSpec, EngineSpec, Fidelity, Limit, PlanRecord
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.machine import fingerprint

Change = Callable[..., None]


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Bundle:
    return Bundle.open(bundle_of("llava"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Sets what the machine has: bf16, a GPU's compute capability, ONNX Runtime's CUDA provider, installed modules."""

    def has(bf16: bool = False, gpu: str = "", cuda: bool = False, installed: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(backend_choice, "has_bf16", lambda: bf16)
        monkeypatch.setattr(backend_choice, "_gpu", lambda: gpu)
        monkeypatch.setattr(backend_choice, "_has_cuda_provider", lambda: cuda)
        monkeypatch.setattr(backend_choice, "find_spec", lambda name: name if name in installed else None)

    return has


def calibrated(bundle: Bundle, fidelity: bool = True, **recipe: str) -> Bundle:
    """The bundle as calibration leaves it, but for its graphs."""
    near = Fidelity(cosine=0.999, relative_error=0.05)
    record = CalibrationSpec(
        source="",
        source_digest="",
        source_precision="fp32",
        options=[],
        recipe=recipe,
        fidelity=dict.fromkeys(recipe, near if fidelity else None),
        limits=[Limit(backend="openvino", scheme="int8-dynamic", says="openvino does not take int8-dynamic")],
    )
    stages = dict(bundle.manifest.stages)
    for stage, scheme in recipe.items():
        stages[stage] = stages[stage].model_copy(update={"precision": scheme})
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"stages": stages, "calibration": record}))


def backends(bundle: Bundle, *arguments: object) -> dict[str, str]:
    return {stage: choice.backend for stage, choice in choose_backends(bundle, *arguments).items()}  # type: ignore[arg-type]


def everywhere(name: str, bundle: Bundle) -> dict[str, str]:
    return dict.fromkeys(bundle.manifest.stages, name)


def test_fp32_stays_fp32_on_a_processor_with_bf16(bundle: Bundle, machine: Change) -> None:
    machine(bf16=True, installed=("openvino",))
    assert backends(bundle) == everywhere("ort", bundle)


@pytest.mark.parametrize(
    ("bf16", "installed", "measured", "expected"),
    [
        (True, ("openvino",), True, "openvino-bf16"),
        (False, ("openvino",), True, "ort"),
        (True, (), True, "ort"),
        (True, ("openvino",), False, "ort"),  # what its error is nobody knows
    ],
)
def test_a_quantised_tower_goes_to_openvino_where_that_is_faster(
    bundle: Bundle, machine: Change, bf16: bool, installed: tuple[str, ...], measured: bool, expected: str
) -> None:
    machine(bf16=bf16, installed=installed)
    made = calibrated(bundle, measured, vision="int8", language="int8-dynamic")
    assert backends(made) == everywhere("ort", bundle) | {"vision": expected}


def test_a_dynamic_tower_stays_on_ort(bundle: Bundle, machine: Change) -> None:
    machine(bf16=True, installed=("openvino",))
    assert backends(calibrated(bundle, vision="int8-dynamic"))["vision"] == "ort"


def test_gpu_engines_come_first_where_they_were_built_for_it(bundle: Bundle, machine: Change) -> None:
    stages = {name: spec.sha256 for name, spec in bundle.manifest.stages.items() if not name.startswith("select")}
    engine = EngineSpec(
        library="TensorRT", version="11", stages=list(stages), compute_capability=["sm_89"], source_sha256=stages
    )
    engines = {"tensorrt-rtx": engine}
    built = Bundle(bundle.folder, bundle.manifest.model_copy(update={"engines": engines}))
    machine(gpu="sm_89", installed=("tensorrt_rtx",))
    assert backends(built) == everywhere("tensorrt-rtx", bundle) | {"select": "ort", "select_clip": "ort"}
    machine(gpu="sm_89", cuda=True, installed=("tensorrt_rtx",))
    assert backends(built)["select"] == "ort-cuda"
    machine(gpu="sm_75", cuda=True, installed=("tensorrt_rtx",))  # built for others
    assert backends(built) == everywhere("ort-cuda", bundle) | {"select_clip": "ort"}
    machine(gpu="sm_89")  # the library is gone
    assert backends(built) == everywhere("ort", bundle)
    machine(installed=("tensorrt_rtx",))  # the GPU is
    assert backends(built) == everywhere("ort", bundle)
    stale = engine.model_copy(update={"source_sha256": dict.fromkeys(stages, "0" * 64)})
    changed = Bundle(bundle.folder, bundle.manifest.model_copy(update={"engines": {"tensorrt-rtx": stale}}))
    machine(gpu="sm_89", installed=("tensorrt_rtx",))
    assert backends(changed) == everywhere("ort", bundle)


def planned(bundle: Bundle, machine: str, **chosen: str) -> Bundle:
    plan = PlanRecord(machine=machine, versions={}, target="first-token", budget="exact", backends=chosen)
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"plan": plan}))


def test_a_plan_counts_on_its_own_machine(bundle: Bundle, machine: Change) -> None:
    machine(installed=("openvino",))
    chosen = choose_backends(planned(bundle, fingerprint(), vision="openvino"))
    assert chosen["vision"].backend == "openvino"
    assert "measured" in chosen["vision"].reason
    assert chosen["language"].backend == "ort"


def test_a_plan_of_another_machine_or_a_backend_that_vanished_is_said(bundle: Bundle, machine: Change) -> None:
    machine(installed=("openvino",))
    other = choose_backends(planned(bundle, "Zen 9, 64 cores", vision="openvino"))["vision"]
    assert other.backend == "ort" and "Zen 9, 64 cores" in other.reason
    machine()
    gone = choose_backends(planned(bundle, fingerprint(), vision="openvino"))["vision"]
    assert gone.backend == "ort" and "openvino is not installed" in gone.reason


def test_what_is_asked_for_is_taken_or_refused(bundle: Bundle, machine: Change) -> None:
    machine(installed=("openvino",))
    made = calibrated(bundle, vision="int8", language="int8-dynamic")
    assert backends(made, {"vision": "openvino", "default": "ort"})["vision"] == "openvino"
    assert backends(bundle, "openvino")["select"] == "ort"
    for backend in ("openvino", "openvino-bf16"):
        with pytest.raises(RedipruneError, match="openvino does not take int8-dynamic"):
            choose_backends(made, backend)
    with pytest.raises(RedipruneError, match="backend 'fast' is not known; choose one of: auto, ort"):
        choose_backends(bundle, "fast")
    with pytest.raises(RedipruneError, match="stage 'tower' is not one of"):
        choose_backends(bundle, {"tower": "ort"})


def test_a_limit_of_an_earlier_version_holds_for_the_whole_bundle(bundle: Bundle, machine: Change) -> None:
    machine(installed=("openvino",))
    made = calibrated(bundle, vision="int8", language="int8-dynamic")
    record = made.manifest.calibration
    assert record is not None
    record.limits = [Limit(backend="openvino", says="no")]
    with pytest.raises(RedipruneError, match="no"):
        choose_backends(made, {"vision": "openvino", "default": "ort"})


def test_backends_in_words() -> None:
    assert describe_backends({"vision": "ort", "language": "ort"}) == "ort"
    mixed = {"vision": "openvino-bf16", "select": "ort", "language": "ort"}
    assert describe_backends(mixed) == "vision on openvino-bf16, all else on ort"


def test_a_pipeline_says_what_it_runs_on_and_why(bundle: Bundle) -> None:
    pipeline = Pipeline.load(bundle.folder, lazy=True)
    assert set(pipeline.reasons) == set(pipeline.backends) == set(bundle.manifest.stages)
