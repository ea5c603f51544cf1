"""Bundles that are wrong on purpose, or as earlier versions made them."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rediprune.graphs.initializers import add_constant
from rediprune.runtime.bundle import Bundle, file_sha256


def corrupt(bundle: Path, target: Path, stage: str, factor: float = 1.02, dtype: str = "float32") -> Path:
    """A copy of a bundle, a quarter of one stage's weights off by a factor, its hashes made to match."""
    shutil.copytree(bundle, target)
    opened = Bundle.open(target, verify=False)
    spec = opened.manifest.stages[stage]
    data = target / f"{spec.file}.data"
    weights = np.fromfile(data, dtype)
    weights[: weights.size // 4] *= weights.dtype.type(factor)
    weights.tofile(data)
    spec.files[f"{spec.file}.data"] = file_sha256(data)
    opened.manifest.engines.clear()
    opened.write_manifest()
    return target


def without_positions(bundle: Path, target: Path) -> Path:
    """A copy of a bundle whose language stage takes a token's slot for its position, as of earlier versions."""
    shutil.copytree(bundle, target)
    opened = Bundle.open(target, verify=False)
    spec = opened.manifest.stages["language"]
    path = target / spec.file
    model = ir.load(path)
    values = {value.name: value for value in model.graph.inputs}
    zero, one = (add_constant(model, ir.tensor(np.array(n, np.int64), name=f"slots.{n}")) for n in (0, 1))
    first, nodes = next(iter(model.graph)), []

    def add(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes))
        return nodes[-1].outputs[0]

    count = add("Squeeze", add("Shape", values["inputs_embeds"], start=1, end=2))
    steps = add("Unsqueeze", add("Range", zero, count, one), zero)
    slots = add("Add", add("Unsqueeze", values["write_index"], one), steps)
    for node, index in list(values["position_ids"].uses()):
        node.replace_input_with(index, slots)
    model.graph.insert_before(first, nodes)
    model.graph.inputs.remove(values["position_ids"])
    path.unlink()
    ir.save(model, path)
    spec.files[spec.file] = file_sha256(path)
    spec.inputs[:] = [port for port in spec.inputs if port.name != "position_ids"]
    opened.write_manifest()
    return target
