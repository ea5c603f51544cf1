"""Checks a built TensorRT engine: the precisions its graph asks for beside those of the finished layers.

Which precision a stage has is chosen in `export.exporter` and `calibration.quantize.precision_recipes`.

A strongly typed network asks for the precision that its ONNX graph says. What was built stands in the library's
detailed layer list, whose metadata names the ONNX nodes that each layer computes.
"""

import re
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import RedipruneError

# DataType of the API → what layer lists call it, and what the manifest calls it.
_NAMES = {
    "FLOAT": ("Float", "fp32"),
    "HALF": ("Half", "fp16"),
    "BF16": ("BFloat16", "bf16"),
    "INT8": ("Int8", "int8"),
    "FP8": ("FP8", "fp8"),
    "INT4": ("Int4", "int4"),
    "FP4": ("FP4", "fp4"),
}
_HEAVY = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "ATTENTION_INPUT")
_THROUGH = ("SHUFFLE", "CAST", "IDENTITY")  # what may stand between a dequantisation and the layer that uses it
_NODE = re.compile(r"\[ONNX Layer: ([^\]|]+)")
_TYPE = re.compile(r"(?:Datatype|Format/Datatype): (\w+)")


@dataclass(frozen=True)
class Asked:
    """A matrix product, convolution or attention: its ONNX nodes, dequantisations included, and its types."""

    nodes: frozenset[str]
    types: frozenset[str]


def asked_precisions(network: Any) -> list[Asked]:
    """The types in which a parsed network wants its heavy operations, quantised ones looked for behind Q/DQ."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found = []
    for layer in layers:
        if layer.type.name not in _HEAVY:
            continue
        nodes, types = set(_NODE.findall(layer.metadata)), set()
        for i in range(min(layer.num_inputs, 2)):  # data and weights, or query and key
            tensor = layer.get_input(i)
            producer = producers.get(tensor.name) if tensor is not None else None
            while producer is not None and producer.type.name in _THROUGH:
                producer = producers.get(producer.get_input(0).name)
            if producer is not None and producer.type.name == "DEQUANTIZE":
                nodes |= set(_NODE.findall(producer.metadata))
                tensor = producer.get_input(0)
            if tensor is not None and tensor.dtype.name in _NAMES:
                types.add(_NAMES[tensor.dtype.name][0])
        if types:  # index arithmetic multiplies integers
            found.append(Asked(frozenset(nodes), frozenset(types)))
    return found


def built_precisions(layers: str) -> dict[str, set[str]]:
    """ONNX node → types that the layers computing it read and write, from a library's list of layers, one a line."""
    found: dict[str, set[str]] = {}
    for line in layers.splitlines():
        types = set(_TYPE.findall(line))
        for node in _NODE.findall(line.partition("Metadata: ")[2]):
            found.setdefault(node, set()).update(types)
    return found


def check_precisions(stage: str, asked: list[Asked], built: dict[str, set[str]]) -> str:
    """Compare what was asked with what was built.

    Returns:
        The precisions of the stage's heavy operations, e.g. "fp16" or "fp16+int8"; "" where it has none.

    Raises:
        RedipruneError: an operation was built in another precision, or none of them is found in the list.
    """
    seen = False
    for want in asked:
        have = set().union(*(built.get(node, set()) for node in want.nodes))
        seen |= bool(have)
        if have and not want.types <= have:  # an operation folded into a constant is in no layer
            raise RedipruneError(
                f"the '{stage}' engine computes {', '.join(sorted(want.nodes))} in {_text(have)}, the graph asks for "
                f"{_text(want.types)}; try another version of the library, and report this with the graph"
            )
    if asked and not seen:
        raise RedipruneError(
            f"the layers of the '{stage}' engine do not name the graph's operations, so its precision is unknown; "
            "this version of the library is not supported, install the one that docs/tensorrt.md names"
        )
    manifest_names = dict(_NAMES.values())
    return "+".join(sorted({manifest_names[name] for want in asked for name in want.types}))


def _text(types: frozenset[str] | set[str]) -> str:
    return " and ".join(sorted(types)) or "no known type"
