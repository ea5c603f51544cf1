"""OpenVINO beside eager PyTorch and ONNX Runtime."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from rediprune.calibration.calibrate import calibrate
from rediprune.export.validate.eager_reference import Reference, Request
from rediprune.export.validate.validate import validate
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends.eager_torch import eager_model
from rediprune.runtime.backends.session import open_language, open_stage
from rediprune.runtime.bundle import Bundle

pytestmark = pytest.mark.openvino

QUESTION = "What is in this picture?"


@pytest.fixture
def library():
    return pytest.importorskip("openvino")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llava", marks=pytest.mark.smoke),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("llava_siglip", "llava_next_video", "llava_onevision", "video_llava", "internvl_qwen3"),
                *("smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_fp16"),
            )
        ),
    ],
)
def test_every_stage_and_answer_is_that_of_eager(name: str, bundle_of: Callable[[str], Path]) -> None:
    report = validate(bundle_of(name), "openvino")
    assert report.passed, [row for row in (*report.stages, *report.end_to_end) if not row.passed]
    assert {row.stage for row in report.stages} == set(Bundle.open(bundle_of(name)).manifest.stages)
    assert any(row.tokens > 5 for row in report.end_to_end)


@pytest.mark.usefixtures("library")
def test_a_long_answer_equals_eager(bundle_of: Callable[[str], Path], photo: Path, cat: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"), "openvino")
    reference = Reference(eager_model(pipeline.bundle), pipeline.processor)
    question = "Compare <image> with <image>, please."
    expected = reference.answer(Request(question, [photo, cat], keep=0.4, max_new_tokens=60))
    answer = pipeline.generate(question, [photo, cat], keep=0.4, max_new_tokens=60, temperature=0.0)
    assert answer.token_ids == expected.token_ids and len(answer.token_ids) > 20
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(answer.kept, expected.kept, strict=True))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["llava", "llava_siglip"])
def test_requests_interleave_and_a_prompt_may_come_in_pieces(name: str, bundle_of: Callable[[str], Path]) -> None:
    bundle = Bundle.open(bundle_of(name))
    ours, theirs = (open_language(backend, bundle, 0) for backend in ("openvino", "ort"))
    random = np.random.default_rng(0)
    pairs = [(ours.start(40), theirs.start(40)) for _ in range(2)]
    for tokens in (9, 1, 1, 7, 1, 5):
        for mine, other in pairs:
            embeds = random.standard_normal((1, tokens, bundle.manifest.decoder.width)).astype(np.float32)
            logits = other.step(embeds)
            np.testing.assert_allclose(mine.step(embeds), logits, rtol=0, atol=2e-5 * np.abs(logits).max())


@pytest.mark.usefixtures("library")
def test_a_full_cache_is_refused(bundle_of: Callable[[str], Path]) -> None:
    bundle = Bundle.open(bundle_of("llava"))
    decoding = open_language("openvino", bundle, 0).start(3)
    with pytest.raises(RedipruneError, match="room for 3 positions, 4 are needed"):
        decoding.step(np.zeros((1, 4, bundle.manifest.decoder.width)))


@pytest.mark.usefixtures("library")
def test_select_stays_on_onnx_runtime(bundle_of: Callable[[str], Path]) -> None:
    backends = Pipeline.load(bundle_of("llava"), "openvino").backends
    assert backends.pop("select") == backends.pop("select_clip") == "ort" and set(backends.values()) == {"openvino"}
    mixed = Pipeline.load(bundle_of("llava"), {"vision": "openvino"}, eager={"project"}).backends
    assert [mixed[stage] for stage in ("vision", "select", "project", "language")] == [
        "openvino",
        "ort",
        "eager",
        "ort",
    ]


@pytest.mark.usefixtures("library")
def test_settings_are_those_of_the_documentation(bundle_of: Callable[[str], Path]) -> None:
    """float32 throughout, the KV cache too, whose default in OpenVINO is 8 bits."""
    bundle = Bundle.open(bundle_of("llava"))
    vision = open_stage("openvino", bundle, "vision", 1).session  # pyright: ignore[reportAttributeAccessIssue]
    language = open_language("openvino", bundle, 0).session  # pyright: ignore[reportAttributeAccessIssue]
    assert vision.get_property("INFERENCE_NUM_THREADS") == 1
    for compiled in (vision, language):
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert language.get_property("KV_CACHE_PRECISION").to_string() == "f32"


@pytest.mark.usefixtures("library")
def test_attention_is_fused_with_the_cache(bundle_of: Callable[[str], Path]) -> None:
    """Else every step would copy the cache: this is why the graph is turned into one with a state."""
    bundle = Bundle.open(bundle_of("llava"))
    compiled = open_language("openvino", bundle, 0).session  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    assert kinds.count("ScaledDotProductAttention") == bundle.manifest.decoder.layers
    assert "MatMul" not in kinds and "Softmax" not in kinds  # what an attention in parts would be


def test_bf16_is_refused_where_the_cpu_has_none(library, bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"), "openvino-bf16")
    assert pipeline.backends["select"] == "ort"
    if "BF16" in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert pipeline.generate(QUESTION, [photo], max_new_tokens=4).token_ids
    else:
        with pytest.raises(RedipruneError, match=r"no bfloat16 arithmetic; use --backend openvino"):
            pipeline.generate(QUESTION, [photo])


@pytest.mark.usefixtures("library")
def test_a_graph_that_openvino_cannot_read_is_one_line(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rediprune.runtime.backends.openvino_decoder.conversions", list)
    with pytest.raises(RedipruneError, match=r"'language'.*TensorScatter.*use --backend ort") as caught:
        open_language("openvino", Bundle.open(bundle_of("llava")), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ["vision", "language"])
def test_without_the_package_it_says_what_to_install(
    stage: str, bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    bundle = Bundle.open(bundle_of("llava"))
    with pytest.raises(RedipruneError, match=r"pip install 'rediprune\[openvino\]', or use --backend ort"):
        _ = open_language("openvino", bundle, 0) if stage == "language" else open_stage("openvino", bundle, stage, 0)


@pytest.mark.usefixtures("library")
def test_the_command_line(
    bundle_of: Callable[[str], Path], photo: Path, tmp_path: Path, rediprune: Callable[..., CompletedProcess]
) -> None:
    bundle = Path(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))
    assert "4 stages run on openvino" in rediprune("build", bundle, "--backend", "openvino").stdout
    engines = json.loads(rediprune("inspect", bundle, "--json").stdout)["engines"]
    assert engines["openvino"]["stages"] == ["vision", "project", "embed", "language"]
    ask = ("run", bundle, "--image", photo, "--prompt", QUESTION, "--max-new-tokens", 6, "--temperature", 0, "--json")
    ours, theirs = (json.loads(rediprune(*ask, "--backend", name).stdout) for name in ("openvino", "ort"))
    assert (ours["token_ids"], ours["kept"]) == (theirs["token_ids"], theirs["kept"])


@pytest.mark.calibration
def test_frames_in_one_batch_have_the_features_of_frames_alone(
    library, bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """An INT8 tower encodes four at once in bfloat16; the last batch may be smaller."""
    if "BF16" not in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    bundle = calibrate(bundle_of("llava"), tmp_path / "int8", "vision=int8")
    stage = open_stage("openvino-bf16", bundle, "vision", 0)
    assert stage.batch == 4
    size = bundle.manifest.image_size
    pixels = np.random.default_rng(0).standard_normal((4, 3, size, size), np.float32)
    alone = [stage.run({"pixel_values": pixels[at : at + 1]})["features"] for at in range(4)]
    for frames in (4, 3):
        together = stage.run({"pixel_values": pixels[:frames]})["features"]
        expected = np.concatenate(alone[:frames])
        assert together.shape == expected.shape
        assert np.abs(together - expected).max() <= 0.02 * np.abs(expected).max()
    assert open_stage("openvino", bundle, "vision", 0).batch == 1
    assert open_stage("openvino-bf16", Bundle.open(bundle_of("llava")), "vision", 0).batch == 1
