"""The decoder's graph as OpenVINO runs it best: the KV cache as its own state, attention as one operator over it.

The ONNX graph writes new keys and values into a cache of fixed length (TensorScatter, which OpenVINO 2026.4 does not
know). OpenVINO's fused decoder attention wants ReadValue → Gather (the beam) → Concat → ScaledDotProductAttention
(https://github.com/openvinotoolkit/openvino, `stateful_sdpa_fusion.cpp`): a cache that grows, which it then keeps in
place. The weights and everything else stay as the bundle has them.
"""

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as ops
from openvino.frontend.onnx import ConversionExtension
from openvino.op.util import Variable, VariableInfo

_BLOCKS = (128, 64)  # of `calibration.quantize.block_weights`, those above OpenVINO's own group


def conversions() -> list[ConversionExtension]:
    """How OpenVINO's ONNX reader is to read the operators it does not know, or not as grouped-query attention."""
    return [ConversionExtension("TensorScatter", "", _append), ConversionExtension("Attention", "", _attention)]


def round_in_blocks(model: Any, precision: str) -> None:
    """Have activations rounded to INT8 in groups as large as the blocks of INT8 or INT4 weights.

    OpenVINO takes groups of 32 unless told otherwise, and rounds nothing where a group is larger than a block: it computes
    in floats then, at half the rate. Large groups make prefills faster, and a token in INT4 slower
    (docs/measurements/cpu-forms.md).

    Args:
        model: the decoder.
        precision: of the stage; one that has no blocks of weights stays as it is.
    """
    if precision not in ("int8-weights", "int4"):
        return
    weights = [node for node in model.get_ops() if node.get_type_name() == "Constant" and _is_compressed(node)]
    widths = [node.get_output_shape(0)[0] for node in weights]  # [in, out]
    group = next((size for size in _BLOCKS if widths and all(width % size == 0 for width in widths)), None)
    if group is not None:
        model.set_rt_info(group, ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])


def _is_compressed(constant: Any) -> bool:
    return constant.get_element_type().get_type_name() in ("i8", "i4") and len(constant.get_output_shape(0)) == 2


def keep_state(model: Any) -> None:
    """Turn each pair `past.<name>`, `present.<name>` of a decoder into a state that starts empty and grows.

    Adds the input `beam_idx` [1] int32, which is 0.
    """
    embeds = model.input("inputs_embeds")
    # What a mask sees as the cache's length is what the cache has after this call: [0, 0, S, 0] more.
    tokens = ops.slice(ops.shape_of(embeds), _integers(1), _integers(2), _integers(1))
    grown = ops.concat([_integers(0, 0), tokens, _integers(0)], axis=0)
    beam = ops.parameter([1], ov.Type.i32, "beam_idx")
    beam.output(0).set_names({"beam_idx"})
    results = {name: port.get_node() for port in model.outputs for name in port.get_names()}
    for past in [port.get_node() for port in model.inputs if port.get_any_name().startswith("past.")]:
        name = past.friendly_name.removeprefix("past.")
        _, heads, _, width = past.get_partial_shape()
        info = VariableInfo()
        info.variable_id, info.data_type = name, past.get_element_type()
        info.data_shape = ov.PartialShape([1, heads, -1, width])
        variable = Variable(info)
        empty = np.zeros((1, heads.get_length(), 0, width.get_length()), past.get_element_type().to_dtype())
        before = ops.read_value(ops.constant(empty), variable)
        chosen = ops.gather(before, beam, ops.constant(np.int64(0)))
        for target in past.output(0).get_target_inputs():
            if target.get_node().get_type_name() == "ShapeOf":
                shape = target.get_node().output(0)
                readers = shape.get_target_inputs()
                length = ops.add(ops.convert(ops.shape_of(before), "i64"), grown)
                for reader in readers:
                    reader.replace_source_output(length.output(0))
            else:
                target.replace_source_output(chosen.output(0))
        result = results[f"present.{name}"]
        model.add_sinks([ops.assign(result.input_value(0).get_node(), variable)])
        model.add_variables([variable])
        model.remove_result(result)
        model.remove_parameter(past)
    model.add_parameters([beam])
    model.validate_nodes_and_infer_types()


def _append(node: Any) -> list[Any]:
    """TensorScatter(cache [B,H,T,W], new [B,H,S,W], index) as the cache with the new behind it."""
    return ops.concat([node.get_input(0), node.get_input(1)], axis=2).outputs()


def _attention(node: Any) -> list[Any]:
    """Attention(query [B,N,S,W], key [B,H,T,W], value [B,H,T,W], mask) with N a multiple of H."""
    query, key, value, mask = (node.get_input(at) for at in range(4))
    heads, width = (key.get_partial_shape()[at].get_length() for at in (1, 3))
    each = ops.divide(ops.slice(ops.shape_of(query), _integers(1), _integers(2), _integers(1)), _integers(heads))

    def repeat(tensor: Any) -> Any:  # the fused attention reads each key head in place for all its query heads
        wide = ops.concat([_integers(1, 1), each, _integers(1, 1)], axis=0)
        tensor = ops.broadcast(ops.unsqueeze(tensor, _integers(2)), wide, broadcast_spec="BIDIRECTIONAL")
        shape = ops.concat([_integers(0), ops.multiply(each, _integers(heads)), _integers(-1, width)], axis=0)
        return ops.reshape(tensor, shape, special_zero=True)

    # As numbers to add: prefill over a boolean mask is 6 times slower.
    dtype = query.get_element_type().to_dtype().type
    bias = ops.select(mask, ops.constant(dtype(0)), ops.constant(np.finfo(dtype).min))
    scale = ops.constant(dtype(node.get_attribute("scale")))
    return ops.scaled_dot_product_attention(query, repeat(key), repeat(value), bias, scale).outputs()


def _integers(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))
