"""Positions of kept tokens: the same in every backend; bundles of earlier versions have but one kind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rediprune.export.build.cpu_engines import build_cpu
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends.language_inputs import LanguageInputs
from rediprune.runtime.backends.session import open_language
from rediprune.runtime.bundle import Bundle, StageSpec, TensorSpec
from rediprune.runtime.positions import Positions, span_of

from ..support.bundles import without_positions

QUESTION = "What is in this picture?"
ASKED = {"keep": 0.3, "max_new_tokens": 8, "temperature": 0.0}


def test_generated_tokens_go_on_behind_the_last() -> None:
    positions = Positions(np.array([[0, 3, 4], [0, 5, 4], [0, 9, 4]]))
    assert positions.span(1, 4).tolist() == [[3, 4, 5, 6], [5, 4, 5, 6], [9, 4, 5, 6]]
    assert positions.span(5, 1).tolist() == [[7]] * 3
    assert positions.end == 10
    assert span_of(None, 4, 2).tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        (["batch", "tokens"], None, [[7, 8], [2, 3]]),
        (["batch", "tokens"], [[[5, 9], [1, 4]]], [[5, 9], [1, 4]]),
        ([3, "batch", "tokens"], None, [[[7, 8], [2, 3]]] * 3),
        ([3, "batch", "tokens"], [[[5, 9], [1, 4]]] * 3, [[[5, 9], [1, 4]]] * 3),
    ],
)
def test_what_the_input_is_fed(shape: list, given: list | None, expected: list) -> None:
    port = TensorSpec(name="position_ids", dtype="int64", shape=shape)
    spec = StageSpec(file="a", files={"a": ""}, precision="fp32", inputs=[port], outputs=[])
    (ids,) = LanguageInputs(spec).feed([7, 2], 2, None if given is None else np.array(given)).values()
    assert ids.tolist() == expected and ids.flags.c_contiguous and ids.dtype == np.int64


def test_deepstack_is_zeros_where_there_is_none() -> None:
    ports = {"inputs_embeds": ["batch", "tokens", 3], "deepstack": [2, "batch", "tokens", 3]}
    inputs = [TensorSpec(name=name, dtype="float16", shape=list(shape)) for name, shape in ports.items()]
    given = LanguageInputs(StageSpec(file="a", files={"a": ""}, precision="fp16", inputs=inputs, outputs=[]))
    (zeros,) = given.feed([0, 4], 1).values()
    assert zeros.shape == (2, 2, 1, 3) and zeros.dtype == np.float16 and not zeros.any()
    some = np.arange(12.0).reshape(2, 2, 3)
    assert np.array_equal(given.feed([0], 2, None, some)["deepstack"][:, 0], some)


@pytest.fixture(scope="module")
def reference(bundle_of: Callable[[str], Path], photo: Path) -> dict[str, list[int]]:
    pipeline = Pipeline.load(bundle_of("llava"), "eager")
    return {
        kind: pipeline.generate(QUESTION, [photo], positions=kind, **ASKED).token_ids
        for kind in ("compact", "original")
    }


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_backends_answer_alike(
    backend: str, bundle_of: Callable[[str], Path], photo: Path, reference: dict[str, list[int]]
) -> None:
    pipeline = Pipeline.load(bundle_of("llava"), backend)
    for kind, expected in reference.items():
        assert pipeline.generate(QUESTION, [photo], positions=kind, **ASKED).token_ids == expected, kind
    assert reference["compact"] != reference["original"]


def test_the_fused_decoder_answers_alike(
    bundle_of: Callable[[str], Path], photo: Path, reference: dict[str, list[int]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))
    build_cpu(folder, "ort")
    pipeline = Pipeline.load(folder)
    for kind, expected in reference.items():
        assert pipeline.generate(QUESTION, [photo], positions=kind, **ASKED).token_ids == expected, kind


def test_where_nothing_is_dropped_positions_are_the_same(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    whole = {"keep": 1.0, "max_new_tokens": 6, "temperature": 0.0}
    answers = [
        pipeline.generate(QUESTION, [photo], positions=kind, **whole).token_ids for kind in ("compact", "original")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("fused", [False, True])
def test_a_bundle_of_an_earlier_version(
    fused: bool, bundle_of: Callable[[str], Path], photo: Path, reference: dict[str, list[int]], tmp_path: Path
) -> None:
    folder = without_positions(bundle_of("llava"), tmp_path / "old")
    if fused:
        build_cpu(folder, "ort")
    pipeline = Pipeline.load(folder)
    assert pipeline.generate(QUESTION, [photo], **ASKED).token_ids == reference["compact"]
    with pytest.raises(RedipruneError, match="export the checkpoint again, or ask with positions 'compact'"):
        pipeline.generate(QUESTION, [photo], positions="original", **ASKED)
    decoding = open_language("ort", Bundle.open(folder), 0).start(4)
    with pytest.raises(RedipruneError, match="takes no positions"):
        decoding.step(np.zeros((1, 1, pipeline.bundle.manifest.decoder.width), np.float32), np.array([[3]]))


def test_original_positions_count_what_was_dropped(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    limit = pipeline.bundle.manifest.decoder.max_positions
    asked = {"keep": 1, "temperature": 0.0}
    end = pipeline.prepare(QUESTION, [photo]).prompt.unpruned_length
    with pytest.raises(RedipruneError, match="'compact' takes fewer"):
        pipeline.generate(QUESTION, [photo], positions="original", max_new_tokens=limit - end + 1, **asked)
    stream = pipeline.stream(QUESTION, [photo], positions="compact", max_new_tokens=limit - end + 1, **asked)
    stream.close()
