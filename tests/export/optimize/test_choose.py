"""The choice among measured forms: the least cost within the bounds of error and memory, or the nearest one named."""

from pathlib import Path

import pytest
from rediprune.export.optimize.candidates import Candidate
from rediprune.export.optimize.choose import Mix, memory_of, ranked_mixes, rejection
from rediprune.export.optimize.optimize_settings import OptimizeSettings
from rediprune.export.optimize.stage_timing import Timed
from rediprune.runtime.bundle import Bundle, Manifest, StageSpec
from rediprune.runtime.errors import RedipruneError


def bundle(**sizes: int) -> Bundle:
    stages = {
        name: StageSpec.model_construct(weight_bytes=size, precision="", file="", files={}, inputs=[], outputs=[])
        for name, size in {"vision": 100, "language": 200, "embed": 50, **sizes}.items()
    }
    return Bundle(Path(), Manifest.model_construct(stages=stages))


def form(
    stage: str, precision: str, backend: str, seconds: float, error: float | None, token: float = 0.0, size: int = 100
) -> Timed:
    made = Candidate(stage, precision, backend, bundle(**{stage: size}))
    return Timed(made, seconds, token, error)


FORMS = [
    form("vision", "fp32", "ort", 1.0, 0.0, size=400),
    form("vision", "fp32", "openvino", 0.9, 1e-6, size=400),
    form("vision", "int8", "openvino-bf16", 0.3, 0.09),
    form("vision", "int8-weights", "ort", 0.6, 0.01),
    form("language", "fp32", "ort", 0.5, 0.0, 0.07, size=800),
    form("language", "int8", "openvino", 0.05, 0.2, 0.02, size=200),
    form("language", "int8-dynamic", "ort", 0.1, 0.1, 0.02, size=200),
    form("language", "int4", "ort", 0.12, 0.11, 0.01, size=100),
    form("language", "int8-weights", "openvino", 0.09, 0.01, 0.03, size=210),
]


def best(**settings: object) -> Mix:
    return ranked_mixes(FORMS, OptimizeSettings(**settings), "fp32")[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "vision", "language"),
    [
        ({"budget": "exact"}, ("fp32", "openvino"), ("fp32", "ort")),
        ({"budget": "error=2%"}, ("int8-weights", "ort"), ("int8-weights", "openvino")),
        # 0.12 + 4 · 0.01 is less than 0.1 + 4 · 0.02; the static form is beyond any budget of accuracy
        ({"budget": "accuracy=1"}, ("int8", "openvino-bf16"), ("int4", "ort")),
        ({"budget": "error=30%"}, ("int8", "openvino-bf16"), ("int8", "openvino")),
        ({"budget": "error=30%", "target": "throughput"}, ("int8", "openvino-bf16"), ("int4", "ort")),
        ({"budget": "accuracy=1", "target": "size"}, ("int8", "openvino-bf16"), ("int4", "ort")),
        # 100 + 2 · 210 + 50 do not fit, 100 + 200 + 50 do
        ({"budget": "error=10%", "memory": 400}, ("int8-weights", "ort"), ("int8-dynamic", "ort")),
    ],
)
def test_the_best_within_the_bounds(
    settings: dict[str, object], vision: tuple[str, str], language: tuple[str, str]
) -> None:
    mix = best(**settings)
    assert {stage: (form, mix.backends[stage]) for stage, form in mix.recipe.items()} == {
        "vision": vision,
        "language": language,
    }


def test_memory_counts_openvinos_second_copy_and_the_other_stages() -> None:
    assert memory_of(Mix((FORMS[3], FORMS[8]), 0.0)) == 100 + 2 * 210 + 50


def test_a_budget_that_nothing_meets_says_what_comes_nearest() -> None:
    forms = [one for one in FORMS if one.candidate.precision != "fp32"]
    with pytest.raises(
        RedipruneError, match=r"no form of 'vision' is within error=0.1%: int8-weights on ort comes nearest"
    ):
        ranked_mixes(forms, OptimizeSettings("error=0.1%"), "fp32")
    with pytest.raises(RedipruneError, match=r"no mix within exact fits .* the smallest .* takes 0.00"):
        ranked_mixes(FORMS, OptimizeSettings("exact", memory=10), "fp32")


def test_what_could_not_run_or_is_unknown_is_out() -> None:
    settings = OptimizeSettings()
    broken = form("vision", "int8", "ort", 0.1, 0.01)
    broken.fault = "OpenVINO refuses it"
    assert rejection(broken, settings, "fp32") == "OpenVINO refuses it"
    assert "not known" in rejection(form("vision", "int8", "ort", 0.1, None), settings, "fp32")
    assert (
        rejection(form("vision", "fp32", "openvino", 0.1, 0.3), settings, "fp32") == "differs by 30.00% from the source"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": "accuracy"}, "--budget accuracy= takes a number"),
        ({"budget": "loss=1"}, "--budget takes error=RELATIVE or accuracy=POINTS"),
        ({"target": "speed"}, "--target is one of first-token, throughput, size, not 'speed'"),
        ({"keep": 0.0}, "--keep is a ratio"),
        ({"keep": 2.0}, "--keep is a ratio"),
        ({"memory": 0}, "--memory must be above 0"),
        ({"data": Path()}, "has no questions with answers"),
    ],
)
def test_settings_that_are_none(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RedipruneError, match=words):
        OptimizeSettings(**settings)  # type: ignore[arg-type]
