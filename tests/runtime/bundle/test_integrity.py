"""Nothing in a bundle is used before it was checked, and every refusal says how to mend it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import MANIFEST, Bundle, file_sha256


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))


def test_manifest_holds_the_contract(bundle: Path, checkpoint_of: Callable[[str], Path]) -> None:
    manifest = Bundle.open(bundle).manifest
    source = checkpoint_of("llava")
    assert manifest.source.config_sha256 == file_sha256(source / "config.json")
    assert manifest.source.weights == {"model.safetensors": file_sha256(source / "model.safetensors")}
    assert list(manifest.stages) == ["vision", "select", "project", "embed", "language"]
    assert [port.name for port in manifest.stages["select"].inputs] == [
        "features",
        "text_embeds",
        "num_keep",
        "alpha",
        "tau",
    ]
    assert manifest.stages["vision"].outputs[0].shape == ["frames", 64, 32]
    assert manifest.stages["language"].precision == "fp32"
    for name, sha in Bundle.open(bundle).expected_files().items():
        assert file_sha256(bundle / name) == sha
    on_disk = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert on_disk - {MANIFEST, ".verified.json", "README.md"} == set(Bundle.open(bundle).expected_files())


def test_not_a_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RedipruneError, match="rediprune export CHECKPOINT"):
            Bundle.open(folder)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda m: m | {"image_size": 224}, "was changed"),
        (lambda m: m | {"schema_version": 99}, "schema version 99"),
        (lambda m: {k: v for k, v in m.items() if k != "stages"}, "stages"),
        (lambda m: m | {"stages": m["stages"] | {"vision": m["stages"]["vision"] | {"file": "../x.onnx"}}}, "outside"),
        (lambda m: m | {"stages": m["stages"] | {"vision": m["stages"]["vision"] | {"file": "/x.onnx"}}}, "outside"),
        (lambda m: [m], "cannot be read"),
    ],
)
def test_an_edited_manifest_is_refused(bundle: Path, change: Callable[[dict], object], word: str) -> None:
    path = bundle / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RedipruneError, match=word) as error:
        Bundle.open(bundle)
    assert "rediprune export" in str(error.value)


def test_a_manifest_that_is_no_json(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("{")
    with pytest.raises(RedipruneError, match="cannot be read"):
        Bundle.open(bundle)


def test_changed_missing_and_linked_files(bundle: Path, tmp_path: Path) -> None:
    data = bundle / "onnx" / "weights" / "model.safetensors"
    Bundle.open(bundle)  # remembers the hashes it found right
    good = data.read_bytes()
    data.write_bytes(good[:-4] + b"\0\0\0\1")
    with pytest.raises(RedipruneError, match=r"model\.safetensors.*damaged.*rediprune export"):
        Bundle.open(bundle)
    data.write_bytes(good)
    Bundle.open(bundle)
    stat = data.stat()
    data.write_bytes(good[:-4] + b"\0\0\0\1")  # damaged on disk: size and time are as they were
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    Bundle.open(bundle)
    with pytest.raises(RedipruneError, match="damaged"):
        Bundle.open(bundle, remember=False)
    data.unlink()
    with pytest.raises(RedipruneError, match=r"lacks 'onnx/weights/model\.safetensors'"):
        Bundle.open(bundle)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(good)
    os.symlink(elsewhere, data)
    with pytest.raises(RedipruneError, match="leads outside"):
        Bundle.open(bundle)


def test_external_data_that_leads_outside_the_bundle(bundle: Path, tmp_path: Path, photo: Path) -> None:
    """A graph whose weights point out of its folder is refused, even where its hash was made to match."""
    opened = Bundle.open(bundle)
    spec = opened.manifest.stages["vision"]
    path = bundle / spec.file
    shutil.copyfile(bundle / "onnx" / "weights" / "model.safetensors", tmp_path / "stolen.data")
    graph = onnx.load(path, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../stolen.data"
    onnx.save(graph, path)
    spec.files[spec.file] = file_sha256(path)
    opened.write_manifest()
    with pytest.raises(RedipruneError, match="cannot load") as error:
        Pipeline.load(bundle).generate("What is this?", [photo], max_new_tokens=1)
    assert "\n" not in str(error.value)


def test_a_read_only_bundle_works(bundle: Path, photo: Path) -> None:
    os.chmod(bundle, 0o555)
    try:
        assert Pipeline.load(bundle).generate("What is this?", [photo], max_new_tokens=1).token_ids
    finally:
        os.chmod(bundle, 0o755)
