"""What the machine can do: matrix products in float32 and int8, and reading memory."""

import time
from collections.abc import Callable

import numpy as np
import onnx.parser
import onnxruntime as ort
import torch

_SIDE = 2048
_MEMORY = 1 << 28  # float32 numbers: 1 GiB, far beyond any cache
_FLOAT = (
    "<ir_version: 10, opset_import: ['': 20]> p (float[S,S] a, float[S,S] b) => (float[S,S] c) { c = MatMul(a, b) }"
)
_INT8 = (
    "<ir_version: 10, opset_import: ['': 20]> p (uint8[S,S] a, T[S,S] b) => (int32[S,S] c) { c = MatMulInteger(a, b) }"
)


def measure_roofline(threads: int, repeats: int = 5) -> dict[str, float]:
    """What the machine reaches, the best of some runs; a multiply-add is two operations.

    Args:
        threads: of ONNX Runtime and torch.
        repeats: of every measurement.

    Returns:
        fp32_gflops, torch_fp32_gflops: float32 products in ONNX Runtime and in torch.
        int8_gops: unsigned by signed int8 products, the pair that CPUs have instructions for.
        uint8_gops: unsigned by unsigned, which our sessions run where there is no VNNI, for its precision
            (`runtime/backends/ort.py`).
        read_gb_per_second: reading memory.
    """
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    unsigned = random.integers(0, 255, (2, _SIDE, _SIDE), np.uint8)
    signed = random.integers(-127, 127, (_SIDE, _SIDE), np.int8)
    product = 2 * _SIDE**3 / 1e9
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    memory = torch.ones(_MEMORY)
    return {
        "fp32_gflops": product / _fastest(_product(_FLOAT, threads, a, b), repeats),
        "int8_gops": product / _fastest(_product(_INT8, threads, unsigned[0], signed), repeats),
        "uint8_gops": product / _fastest(_product(_INT8, threads, *unsigned), repeats),
        "torch_fp32_gflops": product / _fastest(lambda: x @ y, repeats),
        "read_gb_per_second": _MEMORY * 4 / 1e9 / _fastest(memory.sum, repeats),
    }


def _product(text: str, threads: int, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = onnx.parser.parse_model(
        text.replace("S,S", f"{_SIDE},{_SIDE}").replace("T[", f"{b.dtype}[").replace("'", '"')
    )
    # The second factor is a weight, which ONNX Runtime packs at load.
    model.graph.initializer.append(onnx.numpy_helper.from_array(b, "b"))
    del model.graph.input[1]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _fastest(run: Callable[[], object], repeats: int) -> float:
    run()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best
