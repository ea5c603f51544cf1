"""Half precision of a float32 graph: fp16, or bf16 for TensorRT, with islands that stay in float32.

Products, convolutions and attention are in half; so is what moves or adds up their results. In float32 stay norms,
softmaxes and positions (`float32_islands.py`), which is where a model exported in fp16 has them too. ONNX Runtime's and
onnxconverter-common's float16 converters know neither bf16 nor these islands and hold the model in memory; ModelOpt's
AutoCast finds islands by running the graph.

bf16 is for TensorRT only: ONNX Runtime has no bf16 products on CPUs. numpy has no bf16 either, so a bf16 stage takes and
gives float32, its KV cache included; a stage in fp16 takes and gives fp16.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graphs.initializers import add_constant
from ...runtime.errors import RedipruneError
from .float32_islands import Island, check_precisions, find_islands
from .linear_layer_pass import UnsuitableGraphError

_CHUNK = 1 << 24  # bytes of a stored weight that are looked at at once


class HalfPrecisionPass(ir.passes.InPlacePass):
    """Put a stage's graph in half precision; weights are converted one at a time when the model is saved.

    requires: a float32 graph, every value typed, and not that of `select`, which is float32 in every bundle. Stored
        weights may be in half precision, with a Cast behind them, as zero-copy graphs have them.
    ensures: every operator in half precision, and every island in float32, is on the lists of `float32_islands`.

    Attributes:
        islands: what computes in float32, once the pass has run.
    """

    def __init__(self, half: ir.DataType):
        """Set up the pass.

        Args:
            half: FLOAT16 or BFLOAT16.
        """
        self.half = half
        self.islands: list[Island] = []

    def requires(self, model: ir.Model) -> None:
        """See the class.

        Raises:
            UnsuitableGraphError: a value without a type, or an input in half precision.
        """
        for value in _values(model.graph):
            if value.name and value.dtype is None:
                raise UnsuitableGraphError(f"'{value.name}' has no type; export the bundle again")
        for value in model.graph.inputs:
            if value.dtype is not None and value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                raise UnsuitableGraphError(
                    f"input '{value.name}' is {value.dtype.name.lower()} already; half precision is made from an fp32 bundle"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the graph.

        Raises:
            UnsuitableGraphError: a part of the graph of which the precision is not known.
            RedipruneError: a weight is beyond fp16's range; of weights that are float32 later, when the model is saved.
        """
        _Conversion(model, self.half).run()
        RemoveUnusedNodesPass()(model)
        self.islands = check_precisions(model.graph)
        return ir.passes.PassResult(model, modified=True)


class _Conversion:
    """One run of the pass: what was float32 before it, and each value in its other precision."""

    def __init__(self, model: ir.Model, half: ir.DataType):
        self.model, self.half = model, half
        # numpy has no bf16, so the inputs and outputs of such a stage, its KV cache among them, are float32.
        self.boundary = half if half == ir.DataType.FLOAT16 else ir.DataType.FLOAT
        self.islands = find_islands(model.graph, whole_cache=self.boundary != half)
        self.floats = {value for value in _values(model.graph) if value.dtype == ir.DataType.FLOAT}
        self.converted: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        graph = self.model.graph
        for value in graph.inputs:
            if value in self.floats:
                value.dtype = self.boundary
        for node in list(graph):
            dtype = ir.DataType.FLOAT if node in self.islands else self.half
            for at, value in enumerate(node.inputs):
                if value is not None:
                    node.replace_input_with(at, self.in_dtype(value, dtype, node))
            if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
                if dtype == ir.DataType.FLOAT16:
                    _check_stored(node)
                node.attributes["to"] = ir.AttrInt64("to", dtype)
            for value in node.outputs:
                if value in self.floats:
                    value.dtype = dtype
        for at, value in enumerate(graph.outputs):
            if value in self.floats and value.dtype != self.boundary:
                name, result = value.name, self.in_dtype(value, self.boundary, None)
                value.name, result.name = f"{name}.{self.half.name.lower()}", name
                graph.outputs[at] = result

    def in_dtype(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        """The value, or itself converted by a Cast `before` a node (None: at the end) or in storage; each once."""
        if value not in self.floats or value.dtype == dtype:
            return value
        if value not in self.converted:
            if value.const_value is not None:
                self.converted[value] = _converted_constant(self.model, value, dtype)
            else:
                cast = ir.node("Cast", [value], {"to": dtype})
                (result,) = cast.outputs
                result.name, result.type = f"{value.name}.{dtype.name.lower()}", ir.TensorType(dtype)
                result.shape = value.shape
                if before is None:
                    self.model.graph.append(cast)
                else:
                    self.model.graph.insert_before(before, cast)
                self.converted[value] = result
        return self.converted[value]


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _check_stored(cast: ir.Node) -> None:
    """Refuse a stored weight, or a table of which a Cast takes rows, that holds what the Cast makes infinite.

    The engine converts it, and says nothing. It is read a few rows at a time.
    """
    source = cast.inputs[0]
    while source is not None and source.const_value is None and (producer := source.producer()) is not None:
        source = producer.inputs[0] if producer.inputs else None
    tensor = source.const_value if source is not None else None
    if tensor is None or tensor.dtype not in (ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
        return
    values = tensor.numpy()
    rows = max(1, _CHUNK // max(values[:1].nbytes, 1)) if values.ndim else 1
    for chunk in (values[at : at + rows] for at in range(0, len(values), rows)) if values.ndim else [values]:
        if not _holds(chunk.astype(np.float32), ir.DataType.FLOAT16):
            raise RedipruneError(_beyond(tensor.name, ir.DataType.FLOAT16))


def _holds(array: np.ndarray, dtype: ir.DataType) -> bool:
    """Whether all that is finite stays so."""
    with np.errstate(over="ignore"):
        converted = array.astype(dtype.numpy())
    return np.array_equal(np.isfinite(converted.astype(np.float32)), np.isfinite(array))


def _beyond(name: str | None, dtype: ir.DataType) -> str:
    return f"'{name}' has entries beyond the range of {dtype.name.lower()}; use bf16 or fp32"


def _converted_constant(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    tensor = value.const_value
    assert tensor is not None
    name = f"{value.name}.{dtype.name.lower()}"
    lazy = ir.LazyTensor(_converted(tensor, dtype, name), dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
    return add_constant(model, lazy)


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> Callable[[], ir.TensorProtocol]:
    def convert() -> ir.TensorProtocol:
        array = tensor.numpy()
        if not _holds(array, dtype):
            raise RedipruneError(_beyond(tensor.name, dtype))
        return ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)

    return convert
