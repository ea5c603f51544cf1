"""The selection as ONNX equals the eager one index for index, in ONNX Runtime and in ONNX's own reference evaluator."""

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from rediprune.graphs.selection.counts import num_kept
from rediprune.graphs.selection.onnx_graph import DOMAIN, IR_VERSION, OPSET, max_min_function, select_model
from rediprune.graphs.selection.query_vector import pool_query
from rediprune.graphs.selection.reference import max_min_select, select_tokens


def open_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# ------------------------------------------------------------------------------------------------- the greedy step


@cache
def greedy_model():
    """A model of one node: the function."""
    inputs = [
        helper.make_tensor_value_info("similarity", TensorProto.FLOAT, ["F", "P", "P"]),
        helper.make_tensor_value_info("relevance", TensorProto.FLOAT, ["F", "P"]),
        helper.make_tensor_value_info("num_keep", TensorProto.INT64, []),
        helper.make_tensor_value_info("alpha", TensorProto.FLOAT, []),
    ]
    outputs = [helper.make_tensor_value_info("indices", TensorProto.INT64, ["F", "K"])]
    node = helper.make_node("MaxMinSelect", [i.name for i in inputs], ["indices"], domain=DOMAIN)
    model = helper.make_model(
        helper.make_graph([node], "greedy", inputs, outputs),
        functions=[ir.to_proto(max_min_function())],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@cache
def greedy_session():
    return open_session(greedy_model())


def similar(random, frames, patches, kind):
    """Similarity [F,P,P] and relevance [F,P] of tokens that are random, coarse (many ties), duplicated, zero or equal."""
    if kind == "coarse":
        tokens = random.integers(-1, 2, (frames, patches, 2)).astype(np.float32)
    else:
        tokens = random.standard_normal((frames, patches, 6), np.float32)
    if kind == "duplicates":
        tokens = np.take(tokens, random.integers(0, max(1, patches // 3), patches), axis=1)
    if kind == "zeros":
        tokens[random.random((frames, patches)) < 0.5] = 0
    if kind == "constant":
        tokens[:] = tokens[0, 0]
    tokens /= np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    query = random.standard_normal(tokens.shape[-1], np.float32)
    relevance = tokens @ (query / np.linalg.norm(query))
    if kind == "coarse":
        relevance = np.round(relevance * 4) / 4
    return tokens @ tokens.transpose(0, 2, 1), relevance


KINDS = ["random", "coarse", "duplicates", "zeros", "constant", "marked"]


def greedy_cases(kind, number, largest, seed=0):
    """similarity, relevance, K, α; K = 1, K = P and P = 1 often."""
    random = np.random.default_rng([KINDS.index(kind), seed])
    for case in range(number):
        frames = int(random.integers(1, 4))
        patches = 1 if case % 23 == 0 else int(random.integers(1, largest + 1))
        similarity, relevance = similar(random, frames, patches, kind)
        eligible = patches
        if kind == "marked":  # equally many in each frame, at least one left
            eligible = int(random.integers(1, patches + 1))
            relevance[np.arange(frames)[:, None], random.permuted(np.tile(np.arange(patches), (frames, 1)), axis=1)[:, eligible:]] = -np.inf  # fmt: skip
        count = {0: 1, 1: eligible}.get(case % 5, int(random.integers(1, eligible + 1)))
        yield similarity, relevance, count, float(random.choice([0.0, 0.5, 0.3, 1.0, 7.0]))


def greedy_inputs(similarity, relevance, count, alpha):
    return {
        "similarity": similarity,
        "relevance": relevance,
        "num_keep": np.array(count, np.int64),
        "alpha": np.array(alpha, np.float32),
    }


def eager_greedy(similarity, relevance, count, alpha):
    return max_min_select(torch.tensor(similarity), torch.tensor(relevance), count, alpha).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_step_in_onnx_runtime(kind):
    for case in greedy_cases(kind, number=200, largest=28):
        (indices,) = greedy_session().run(None, greedy_inputs(*case))
        assert indices.dtype == np.int64
        assert np.array_equal(indices, eager_greedy(*case)), case


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_step_in_the_reference_evaluator(kind):
    evaluator = ReferenceEvaluator(greedy_model())
    for case in greedy_cases(kind, number=8, largest=10, seed=1):
        (indices,) = evaluator.run(None, greedy_inputs(*case))
        assert indices.dtype == np.int64
        assert np.array_equal(indices, eager_greedy(*case)), case
        assert np.array_equal(indices, greedy_session().run(None, greedy_inputs(*case))[0])


@pytest.mark.parametrize("patches", [144, 576])
def test_greedy_step_at_real_sizes(patches):
    random = np.random.default_rng(patches)
    similarity, relevance = similar(random, 2, patches, "random")
    for count in (1, round(patches * 0.15), patches // 2):
        (indices,) = greedy_session().run(None, greedy_inputs(similarity, relevance, count, 0.5))
        assert np.array_equal(indices, eager_greedy(similarity, relevance, count, 0.5))


@pytest.mark.parametrize("count", [7, 8, 1000])
def test_greedy_step_takes_a_count_above_all_patches_as_all(count):
    similarity, relevance = similar(np.random.default_rng(0), 2, 7, "random")
    (indices,) = greedy_session().run(None, greedy_inputs(similarity, relevance, count, 0.5))
    assert indices.tolist() == [list(range(7))] * 2


@pytest.mark.parametrize("count", [7, 8, 1000])
def test_reference_evaluator_takes_a_count_above_all_patches_as_all(count):
    similarity, relevance = similar(np.random.default_rng(0), 2, 7, "random")
    (indices,) = ReferenceEvaluator(greedy_model()).run(None, greedy_inputs(similarity, relevance, count, 0.5))
    assert indices.tolist() == [list(range(7))] * 2


def test_function_is_written_in_standard_operators():
    function = max_min_function()
    assert (function.domain, function.name) == (DOMAIN, "MaxMinSelect")
    assert [value.name for value in function.inputs] == ["similarity", "relevance", "num_keep", "alpha"]
    assert {node.domain for node in function.all_nodes()} == {""}


# ----------------------------------------------------------------------------------------------- the select stage

CHANNELS = 16
WIDTHS = {"equal": 16, "groups": 48, "pooled": 40, "tiled": 7, "one": 1}
DTYPES = [np.float32, np.float16]


@cache
def stage(depth, dtype):
    return ir.to_proto(select_model(CHANNELS, depth, dtype))


@cache
def session(depth, dtype):
    return open_session(stage(depth, dtype))


def stage_inputs(features, embeds, count, alpha=0.5, tau=0.0):
    return {
        "features": features,
        "text_embeds": embeds,
        "num_keep": np.array(count, np.int64),
        "alpha": np.array(alpha, np.float32),
        "tau": np.array(tau, np.float32),
    }


def eager(features, embeds, count, alpha=0.5, tau=0.0):
    return select_tokens(torch.tensor(features), pool_query(torch.tensor(embeds)), count, alpha, tau).numpy()


def check(outputs, features, embeds, *settings):
    indices, kept = outputs
    assert indices.dtype == np.int64
    assert np.array_equal(indices, eager(features, embeds, *settings)), settings
    assert kept.dtype == features.dtype
    assert np.array_equal(kept, np.take_along_axis(features, indices[:, :, None], axis=1))


def random_inputs(random, depth, dtype, frames, patches, length):
    towards = random.choice([0.0, 0.6])  # the question; then more tokens may reach τ than are kept
    features = (random.standard_normal((frames, patches, CHANNELS)) + towards).astype(dtype)
    return features, (random.standard_normal((length, depth)) + towards).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", WIDTHS.values(), ids=WIDTHS)
def test_stage_equals_eager(depth, dtype):
    random = np.random.default_rng([depth, np.dtype(dtype).itemsize])
    for case in range(120):
        patches = 1 if case % 29 == 0 else int(random.integers(2, 33))
        length = int(random.choice([1, 2, 3, 12]))
        features, embeds = random_inputs(random, depth, dtype, int(random.integers(1, 3)), patches, length)
        count = {0: 1, 1: patches}.get(case % 11, int(random.integers(1, patches + 1)))
        alpha = float(random.choice([0.0, 0.5, 1.5]))
        tau = float(random.choice([0.0, 0.0, -0.5, 1e-6, 0.1, 0.4, 5.0]))
        check(session(depth, dtype).run(None, stage_inputs(features, embeds, count, alpha, tau)), features, embeds, count, alpha, tau)  # fmt: skip


@pytest.mark.parametrize("depth", WIDTHS.values(), ids=WIDTHS)
def test_stage_equals_eager_in_the_reference_evaluator(depth):
    evaluator = ReferenceEvaluator(stage(depth, np.float32))
    random = np.random.default_rng(depth)
    for count, tau in ((1, 0.0), (3, 0.2), (5, 0.2), (9, 0.0)):
        features, embeds = random_inputs(random, depth, np.float32, 2, 9, 3)
        check(evaluator.run(None, stage_inputs(features, embeds, count, 0.5, tau)), features, embeds, count, 0.5, tau)


@pytest.mark.parametrize("tau", [0.0, 0.1])
@pytest.mark.parametrize(("patches", "frames", "keep"), [(144, 4, 0.15), (144, 1, 0.5), (576, 1, 0.15)])
def test_stage_at_real_sizes(patches, frames, keep, tau):
    features, embeds = random_inputs(np.random.default_rng(patches), 40, np.float32, frames, patches, 20)
    count = num_kept(patches, keep)
    check(session(40, np.float32).run(None, stage_inputs(features, embeds, count, 0.5, tau)), features, embeds, count, 0.5, tau)  # fmt: skip


@pytest.mark.parametrize("tau", [0.0, 0.25])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stage_with_tokens_that_tie(dtype, tau):
    """Features of ±1 and 0: cosines are exact in every engine, and most of them equal others."""
    random = np.random.default_rng(3)
    for _ in range(60):
        patches = int(random.integers(2, 40))
        features = random.choice(np.array([-1, 1], dtype), (2, patches, CHANNELS))
        features = features[:, random.integers(0, patches, patches)]
        features[random.random((2, patches)) < 0.2] = 0
        embeds = random.choice(np.array([-1, 1], dtype), (1, CHANNELS))
        if random.random() < 0.5:  # most tokens relevant: more candidates than are kept
            features = np.where(random.random(features.shape) < 0.5, features, np.abs(features) * embeds[0])
        count = int(random.integers(1, patches + 1))
        alpha = float(random.choice([0.0, 0.5]))
        check(session(CHANNELS, dtype).run(None, stage_inputs(features, embeds, count, alpha, tau)), features, embeds, count, alpha, tau)  # fmt: skip


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("depth", WIDTHS.values(), ids=WIDTHS)
def test_stage_with_an_empty_question(depth, tau, length):
    features, _ = random_inputs(np.random.default_rng(depth), depth, np.float32, 2, 15, 1)
    embeds = np.zeros((length, depth), np.float32)
    for count in (1, 4, 10, 15):
        outputs = session(depth, np.float32).run(None, stage_inputs(features, embeds, count, 0.5, tau))
        check(outputs, features, embeds, count, 0.5, tau)
        assert np.array_equal(outputs[0], eager(features, np.zeros((0, depth), np.float32), count, 0.5, tau))


@pytest.mark.parametrize("dtype", DTYPES)
def test_stage_with_nothing_to_tell_tokens_apart(dtype):
    random = np.random.default_rng(0)
    _, embeds = random_inputs(random, 40, dtype, 1, 1, 4)
    row = random.standard_normal(CHANNELS).astype(dtype)
    for features in (np.zeros((2, 12, CHANNELS), dtype), np.tile(row, (2, 12, 1))):
        for count in (1, 5, 12):
            for tau in (0.0, 0.5):
                outputs = session(40, dtype).run(None, stage_inputs(features, embeds, count, 0.5, tau))
                check(outputs, features, embeds, count, 0.5, tau)
                assert outputs[0].tolist() == [list(range(count))] * 2


def test_one_session_serves_every_count():
    features, embeds = random_inputs(np.random.default_rng(1), 48, np.float32, 2, 20, 5)
    for count in range(1, 21):
        check(session(48, np.float32).run(None, stage_inputs(features, embeds, count)), features, embeds, count)
    above = session(48, np.float32).run(None, stage_inputs(features, embeds, 99))
    check(above, features, embeds, 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", WIDTHS.values(), ids=WIDTHS)
def test_stage_is_a_valid_model(depth, dtype):
    model = stage(depth, dtype)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET, DOMAIN: 1}
    assert model.ir_version == IR_VERSION
    assert [function.name for function in model.functions] == ["MaxMinSelect"]
    kind = "tensor(float16)" if dtype == np.float16 else "tensor(float)"
    assert {i.name: (i.type, i.shape) for i in session(depth, dtype).get_inputs()} == {
        "features": (kind, ["F", "P", CHANNELS]),
        "text_embeds": (kind, ["L", depth]),
        "num_keep": ("tensor(int64)", []),
        "alpha": ("tensor(float)", []),
        "tau": ("tensor(float)", []),
    }
    assert {o.name: (o.type, o.shape) for o in session(depth, dtype).get_outputs()} == {
        "indices": ("tensor(int64)", ["F", "K"]),
        "kept": (kind, ["F", "K", CHANNELS]),
    }
