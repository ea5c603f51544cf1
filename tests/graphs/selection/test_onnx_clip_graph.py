"""The `select_clip` graph equals the eager selection index for index, in ONNX Runtime and in ONNX's own evaluator."""

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from rediprune.graphs.selection.clip_reference import select_clip_tokens
from rediprune.graphs.selection.onnx_clip_graph import CANDIDATES, select_clip_model

from .clip_cases import CHANNELS, DEPTH, KINDS, ClipCase, clip_cases

FEW = 5  # candidates: blocks end early, and many are needed
SOME = 40  # as many as the picks of a block that is cut at 32


@cache
def model(candidates: int = CANDIDATES, dtype: type = np.float32, depth: int = DEPTH) -> onnx.ModelProto:
    return ir.to_proto(select_clip_model(CHANNELS, depth, dtype, candidates))


@cache
def session(candidates: int = CANDIDATES, dtype: type = np.float32) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model(candidates, dtype).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def inputs(case: ClipCase, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {
        "features": case.features.astype(dtype),
        "text_embeds": case.embeds.astype(dtype),
        "num_keep": np.array(case.count, np.int64),
        "alpha": np.array(case.alpha, np.float32),
        "min_per_frame": np.array(case.least, np.int64),
        "threshold": np.array(case.threshold, np.float32),
    }


def check(outputs: list[np.ndarray], case: ClipCase) -> None:
    indices, kept = outputs
    expected = select_clip_tokens(torch.tensor(case.features), torch.tensor(case.query), *case.settings).numpy()
    assert indices.dtype == np.int64
    assert np.array_equal(indices, expected), case
    assert np.array_equal(kept, case.features.reshape(-1, CHANNELS)[indices])


@pytest.mark.parametrize("candidates", [FEW, SOME, CANDIDATES])
@pytest.mark.parametrize("kind", KINDS)
def test_graph_equals_eager(kind: str, candidates: int) -> None:
    for case in clip_cases(kind, number=15, largest=14):
        check(session(candidates).run(None, inputs(case)), case)


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [FEW, SOME, CANDIDATES])
@pytest.mark.parametrize("kind", KINDS)
def test_graph_equals_eager_in_many_cases(kind: str, candidates: int) -> None:
    for case in clip_cases(kind, number=250, largest=40):
        check(session(candidates).run(None, inputs(case)), case)


@pytest.mark.parametrize("kind", KINDS)
def test_graph_equals_eager_in_the_reference_evaluator(kind: str) -> None:
    evaluator = ReferenceEvaluator(model(FEW))
    for case in clip_cases(kind, number=3, largest=8):
        check(evaluator.run(None, inputs(case)), case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_graph_equals_eager_in_the_reference_evaluator_in_many_cases(kind: str) -> None:
    evaluator = ReferenceEvaluator(model(FEW))
    for case in clip_cases(kind, number=180, largest=9):
        check(evaluator.run(None, inputs(case)), case)


def test_graph_at_a_real_size() -> None:
    random = np.random.default_rng(0)
    frame = random.standard_normal((1, 196, CHANNELS), np.float32)
    features = frame + 0.2 * random.standard_normal((8, 196, CHANNELS), np.float32)
    case = ClipCase(features, random.standard_normal((12, DEPTH), np.float32), 29, 0.5, 3, -np.inf)
    check(session().run(None, inputs(case)), case)


def test_blocks_that_are_cut_in_the_reference_evaluator() -> None:
    random = np.random.default_rng(1)
    features = random.standard_normal((2, 33, CHANNELS), np.float32)
    case = ClipCase(features, random.standard_normal((5, DEPTH), np.float32), 24, 0.5, 2, -np.inf)
    check(ReferenceEvaluator(model(SOME)).run(None, inputs(case)), case)


def test_half_precision_features_are_scored_in_float32() -> None:
    for case in clip_cases("random", number=10, largest=14):
        half = ClipCase(
            case.features.astype(np.float16).astype(np.float32),
            case.embeds.astype(np.float16).astype(np.float32),
            *case.settings,
        )
        indices, kept = session(dtype=np.float16).run(None, inputs(half, np.float16))
        assert kept.dtype == np.float16
        check([indices, kept.astype(np.float32)], half)


@pytest.mark.parametrize("depth", [7, CHANNELS, 40])
def test_query_of_any_width(depth: int) -> None:
    random = np.random.default_rng(depth)
    features, embeds = (
        random.standard_normal((2, 9, CHANNELS), np.float32),
        random.standard_normal((4, depth), np.float32),
    )
    case = ClipCase(features, embeds, 4, 0.5, 1, -np.inf)
    run = onnxruntime.InferenceSession(model(depth=depth).SerializeToString(), providers=["CPUExecutionProvider"])
    check(run.run(None, inputs(case)), case)


def test_graph_is_valid_and_in_standard_operators() -> None:
    onnx.checker.check_model(model(), full_check=True)
    own = {(function.domain, function.name) for function in model().functions}
    assert own == {("rediprune", "AddPicks"), ("rediprune", "IsSpent"), ("rediprune", "PickOne")}
    nodes = ir.from_proto(model()).graph.all_nodes()  # of the bodies of loops too
    assert {(node.domain, node.op_type) for node in nodes if node.domain} == own
    assert {node.domain for function in model().functions for node in function.node} == {""}
