"""Calibration reads weights from the bundle's listed files, and from nowhere else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rediprune.calibration.activations import tap
from rediprune.calibration.bundle_graphs import load_graph, open_graph
from rediprune.runtime import RedipruneError
from rediprune.runtime.bundle import Bundle, file_sha256
from safetensors.numpy import load_file

WEIGHTS = "onnx/weights/model.safetensors"


def point_to(bundle: Bundle, stage: str, location: str) -> None:
    """Have a stage's graph read its weights from another place, its hash and the manifest's seal made to match."""
    spec = bundle.manifest.stages[stage]
    graph = onnx.load(bundle.path(spec.file), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    bundle.path(spec.file).unlink()
    onnx.save(graph, bundle.path(spec.file))
    spec.files[spec.file] = file_sha256(bundle.path(spec.file))
    bundle.write_manifest()


def test_weights_in_hard_links_and_in_copies_are_read(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    linked = Bundle.open(bundle_of("llava"))
    assert linked.path(WEIGHTS).stat().st_nlink > 1
    copied = Bundle.open(shutil.copytree(linked.folder, tmp_path / "copy"))
    assert copied.path(WEIGHTS).stat().st_nlink == 1
    stored = load_file(linked.path(WEIGHTS))
    expected = stored[next(name for name in stored if name.endswith("projector.linear_1.bias"))]
    for bundle in (linked, copied):
        model = load_graph(bundle, "project")
        weight = model.graph.initializers["linear_1.bias"].const_value
        assert weight is not None and np.array_equal(weight.numpy(), expected)
        session = open_graph(bundle, "project", model)
        assert [port.name for port in session.get_inputs()] == ["kept"]


@pytest.mark.parametrize(
    "location", ["../../secret.bin", "unlisted.bin", "weights/../unlisted.bin", "..\\..\\secret.bin"]
)
def test_weights_elsewhere_are_refused_though_the_hashes_match(
    location: str, bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = Bundle.open(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))
    for place in (tmp_path / "secret.bin", bundle.path("onnx/unlisted.bin")):
        shutil.copyfile(bundle.path(WEIGHTS), place)
    point_to(bundle, "project", location)
    with pytest.raises(RedipruneError, match="which the manifest does not list"):
        Bundle.open(bundle.folder)
    unverified = Bundle.open(bundle.folder, verify=False)
    with pytest.raises(RedipruneError, match="which the manifest does not list"):
        load_graph(unverified, "project")
    with pytest.raises(RedipruneError, match="which the manifest does not list"):
        tap(unverified, "project", [])
    with pytest.raises(RedipruneError, match="which the manifest does not list"):
        open_graph(unverified, "project", ir.load(unverified.path("onnx/project.onnx")))
