"""A bundle by reference: the checkpoint's own files, linked, converted in the graph, refused once they change."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from rediprune.export.checkpoint import linked_files as shards
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle
from rediprune.export.validate.validate import validate
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import Bundle
from safetensors.torch import load_file, save_file

WEIGHTS = "onnx/weights/model.safetensors"


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "checkpoint"))


def graph(bundle: Path, stage: str) -> onnx.GraphProto:
    return onnx.load(bundle / f"onnx/{stage}.onnx", load_external_data=False).graph


def test_matrices_are_the_checkpoints_own_bytes(bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of("llava")
    own = sum(file.stat().st_size for file in (bundle / "onnx").glob("*.onnx"))
    assert (bundle / WEIGHTS).stat().st_nlink > 1 and not list(bundle.rglob("*.data"))
    weights = load_file(bundle / WEIGHTS)
    assert own < (bundle / WEIGHTS).stat().st_size / 4
    data = (bundle / WEIGHTS).read_bytes()
    known = {tensor.numpy().tobytes() for tensor in weights.values()}
    seen = 0
    for stage in ("vision", "project", "embed", "language"):
        for tensor in graph(bundle, stage).initializer:
            if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
                at = {entry.key: entry.value for entry in tensor.external_data}
                assert at["location"] == "weights/model.safetensors"
                assert data[int(at["offset"]) :][: int(at["length"])] in known
                seen += 1
    assert seen > 20


def test_a_weight_reaches_its_user_through_a_cast(tmp_path: Path) -> None:
    """bf16 and tied embeddings: one tensor in the file, the same bytes in both stages, and what eager PyTorch gives."""
    folder = make_checkpoint(tmp_path / "bf16", "llava", "clip", "qwen2", dtype="bfloat16", shard_size=50_000)
    bundle = export_bundle(Checkpoint.open(str(folder)), tmp_path / "bundle").folder
    places = []
    for stage, name in (("embed", "weight"), ("language", "head.weight")):
        nodes = graph(bundle, stage).node
        tensor = next(t for t in graph(bundle, stage).initializer if t.name == name)
        assert tensor.data_type == onnx.TensorProto.BFLOAT16
        places.append({entry.key: entry.value for entry in tensor.external_data})
        (first,) = (node for node in nodes if name in node.input)
        used = [first, *(node for node in nodes if first.output[0] in node.input)]
        # Of a table only the rows that are looked up are converted.
        assert [node.op_type for node in used] == (["Gather", "Cast"] if stage == "embed" else ["Cast", "Transpose"])
    assert places[0] == places[1]
    assert validate(bundle).passed
    opened = Bundle.open(bundle)
    linked = {file.name for file in (bundle / "onnx/weights").iterdir()}
    assert len(linked) > 1 and linked <= set(opened.manifest.source.weights)
    assert all(spec.compared for spec in opened.manifest.stages.values())


def test_a_shard_edited_in_place_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False).folder
    Bundle.open(bundle)
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x12\x34")
    with pytest.raises(RedipruneError, match=r"model\.safetensors.*damaged or was replaced.*rediprune export"):
        Pipeline.load(bundle)


def test_a_bundle_outlives_its_checkpoint_and_can_be_copied(
    checkpoint: Path, tmp_path: Path, photo: Path, bundle_of: Callable[[str], Path]
) -> None:
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    shutil.copytree(tmp_path / "bundle", tmp_path / "elsewhere")
    shutil.rmtree(checkpoint)
    shutil.rmtree(tmp_path / "bundle")
    ask = {"images": [photo], "max_new_tokens": 5}
    answers = [Pipeline.load(b).generate("What?", **ask) for b in (tmp_path / "elsewhere", bundle_of("llava_copy"))]
    assert answers[0].token_ids == answers[1].token_ids


def test_no_hashing_again_at_the_first_load(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    monkeypatch.setattr(
        "rediprune.runtime.bundle.integrity.file_sha256", lambda path: pytest.fail(f"{path} hashed again")
    )
    Bundle.open(tmp_path / "bundle")


def test_without_hard_links_the_weights_are_copied(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(shards.os, "link", refuse)
    bundle = export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    assert not bundle.manifest.refers and bundle.path("onnx/language.onnx.data").is_file()
    assert "--copy" in bundle.manifest.rebuild_command(bundle.folder)
    stamp = bundle.path("manifest.json").stat().st_mtime_ns
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    assert bundle.path("manifest.json").stat().st_mtime_ns == stamp  # up to date: links are as impossible as before


def test_a_hub_cache_offline(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    """In the hub's cache, files of a snapshot are symbolic links to blobs: the blobs are linked, nothing is fetched."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    place = cache / "models--org--tiny-llava"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    (place / "blobs").mkdir()
    (place / "snapshots" / revision).mkdir(parents=True)
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        blob = place / "blobs" / f"{number:064x}"
        file.rename(blob)
        (place / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for asked in (None, "main", revision):
        opened = Checkpoint.open("org/tiny-llava", asked)
        assert opened.folder.name == revision
    bundle = export_bundle(Checkpoint.open("org/tiny-llava", "main"), tmp_path / "bundle", check=False)
    weights = bundle.path(WEIGHTS)
    assert not weights.is_symlink() and weights.stat().st_nlink == 2
    assert bundle.manifest.source.name == "org/tiny-llava" and bundle.manifest.source.revision == "main"
    assert "org/tiny-llava -o" in bundle.manifest.rebuild_command(bundle.folder)
    assert "--revision main" in bundle.manifest.rebuild_command(bundle.folder)
    assert Pipeline.load(bundle.folder).generate("What?", images=[photo], max_new_tokens=1).token_ids
    with pytest.raises(RedipruneError, match=r"'org/other' is neither a local folder nor a hub repository"):
        Checkpoint.open("org/other")


def header(file: Path, change: Callable[[dict], object]) -> None:
    """Rewrite a safetensors file's header."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_weight_files_that_lie(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    good = file.read_bytes()

    def refuse(word: str) -> None:
        with pytest.raises(RedipruneError, match=word) as error:
            _ = Checkpoint.open(str(checkpoint)).skeleton("fp32").weights
        assert "\n" not in str(error.value)
        file.write_bytes(good)

    def largest(entries: dict) -> dict:
        named = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        return max(named.values(), key=lambda entry: entry["data_offsets"][1])

    def longer(entries: dict) -> None:  # past the end of the file
        largest(entries)["data_offsets"][1] += 4

    def overlapping(entries: dict) -> None:
        largest(entries)["data_offsets"][0] -= 4

    def reshaped(entries: dict) -> None:  # not what type and offsets make
        largest(entries)["shape"][0] += 1

    for change in (longer, overlapping, reshaped):
        header(file, change)
        refuse("truncated or damaged")
    weights = load_file(file)
    key = next(name for name in weights if name.endswith("q_proj.weight"))
    for dtype, word in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        save_file(weights | {key: weights[key].to(dtype)}, file, metadata={"format": "pt"})
        refuse(f"stored as {word}; weights must be bfloat16, float16 or float32")


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "sharded", "llava", shard_size=100_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    key = next(key for key, name in index["weight_map"].items() if name == first)
    for name, word in ((last, f"says that '{key}' is in '{last}', and it is not"), ("../x.safetensors", "is damaged")):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {key: name}}))
        with pytest.raises(RedipruneError, match=word):
            _ = Checkpoint.open(str(folder)).skeleton("fp32").weights


def test_a_file_that_changes_during_the_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rediprune.export import exporter as exporting

    original = exporting._copy_processor

    def touch(*args: Path) -> dict[str, str]:
        os.utime(checkpoint / "model.safetensors", ns=(0, 0))
        return original(*args)

    monkeypatch.setattr(exporting, "_copy_processor", touch)
    with pytest.raises(RedipruneError, match="changed while it was exported"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    assert not (tmp_path / "bundle").exists()


def test_too_little_memory_is_said_before_anything_is_loaded(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rediprune.runtime.memory.available_memory", lambda: 100_000)
    with pytest.raises(RedipruneError, match=r"fp32 take 0\.0 GB and 0\.0 GB of memory are free; quantise"):
        Pipeline.load(bundle_of("llava"))
