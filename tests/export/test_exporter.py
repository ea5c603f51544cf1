"""Export: complete or absent, resumable, and clear about every checkpoint it cannot take."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest
from rediprune.export import exporter as exporting
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import Bundle, file_sha256
from rediprune.runtime.bundle.lock import making


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "checkpoint"))


def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that are traced from now on."""
    names: list[str] = []
    original = exporting.trace

    def trace(stage, dtype):
        names.append(stage.name)
        return original(stage, dtype)

    monkeypatch.setattr(exporting, "trace", trace)
    return names


def test_legacy_names_shards_and_dtypes_give_the_same_engines(tmp_path: Path, photo: Path) -> None:
    """Older repositories name weights otherwise, split them and store bf16; what is computed stays."""
    answers = []
    for name, options in (("now", {}), ("then", {"legacy_names": True, "shard_size": 100_000})):
        folder = make_checkpoint(tmp_path / name, "llava_next_video", "clip", "qwen2", **options)
        bundle = export_bundle(Checkpoint.open(str(folder)), tmp_path / f"{name}-bundle", copy=True)
        answers.append(Pipeline.load(bundle.folder).generate("What is this?", [photo], max_new_tokens=5).token_ids)
        stages = bundle.manifest.stages
        answers.append({stage: spec.files for stage, spec in stages.items()})
    assert len(list((tmp_path / "then").glob("*.safetensors"))) > 1
    assert answers[:2] == answers[2:]


def test_bf16_checkpoint(tmp_path: Path, photo: Path) -> None:
    from rediprune.export.validate.validate import validate

    folder = make_checkpoint(tmp_path / "bf16", "llava", dtype="bfloat16")
    export_bundle(Checkpoint.open(str(folder)), tmp_path / "bundle")
    assert validate(tmp_path / "bundle").passed


def test_an_up_to_date_bundle_is_left_alone(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = traced(monkeypatch)
    opened = Checkpoint.open(str(checkpoint))
    export_bundle(opened, tmp_path / "bundle")
    assert names == ["vision", "select", "select_clip", "project", "embed", "language"]
    export_bundle(opened, tmp_path / "bundle")
    assert len(names) == 6
    export_bundle(opened, tmp_path / "bundle", force=True)
    assert len(names) == 12
    with open(checkpoint / "config.json", "a") as file:
        file.write("\n")
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    assert len(names) == 18
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bundle.lock", "bundle", "checkpoint"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_broken_off_export_leaves_no_bundle_and_resumes(
    failure: BaseException, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = traced(monkeypatch)
    original = ir.save

    def save(model, path, **options):
        original(model, path, **options)
        if Path(path).stem == "embed":
            raise failure

    monkeypatch.setattr(exporting.ir, "save", save)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else RedipruneError
    with pytest.raises(expected) as error:
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    if expected is RedipruneError:
        assert "full" in str(error.value) and "finished stages are kept" in str(error.value)
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.glob(".bundle.partial/onnx/embed*"))
    monkeypatch.setattr(exporting.ir, "save", original)
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    assert names == ["vision", "select", "select_clip", "project", "embed", "embed", "language"]
    assert [path.name for path in tmp_path.glob(".bundle*")] == [".bundle.lock"]


def test_a_stage_whose_file_went_is_made_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_copy_processor", lambda *args: (_ for _ in ()).throw(RuntimeError("broken off")))
    with pytest.raises(RuntimeError):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    monkeypatch.undo()
    (tmp_path / ".bundle.partial/onnx/project.onnx").unlink()
    names = traced(monkeypatch)
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    assert names == ["project"]


def test_two_exports_to_one_folder_do_not_mix(checkpoint: Path, tmp_path: Path) -> None:
    with making(tmp_path / "bundle"), pytest.raises(RedipruneError, match="another process is making"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bundle.lock", "bundle", "checkpoint"]


@pytest.mark.process
def test_two_exports_by_two_processes_leave_one_bundle(checkpoint: Path, tmp_path: Path) -> None:
    """The one that comes too late says so, or finds the bundle up to date."""
    command = [sys.executable, "-m", "rediprune.runtime", "export", str(checkpoint), "-o", str(tmp_path / "bundle")]
    exports = [subprocess.Popen([*command, "--no-check"], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in exports]
    codes = [process.returncode for process in exports]
    assert 0 in codes and set(codes) <= {0, 2}, said
    assert all("another process is making" in text for code, text in zip(codes, said, strict=True) if code)
    Bundle.open(tmp_path / "bundle", remember=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bundle.lock", "bundle", "checkpoint"]


def test_a_weight_file_that_cannot_be_read_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("rediprune.export.checkpoint.linked_files.file_sha256", closed)
    with pytest.raises(RedipruneError, match=r"weight file '.*checkpoint/model\.safetensors' cannot be read \(Perm"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: closed(source))
    with pytest.raises(RedipruneError, match=r"no permission for '.*checkpoint/[\w.]+' \(Permission denied\)"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)


def test_an_output_that_cannot_be_written_is_refused_first(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = traced(monkeypatch)
    (tmp_path / "file").write_text("no folder")
    for place in ("/proc/bundle", "/sys/kernel/bundle", "/dev/null/bundle", tmp_path / "file" / "bundle"):
        with pytest.raises(RedipruneError, match="choose another folder"):
            export_bundle(Checkpoint.open(str(checkpoint)), place)
    assert not names


def test_a_weight_file_that_changed_behind_the_clock_while_a_run_was_ended(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that refer to it were finished before: they do not go into a bundle with hashes of two files."""
    monkeypatch.setattr(exporting, "_copy_processor", lambda *args: (_ for _ in ()).throw(RuntimeError("broken off")))
    with pytest.raises(RuntimeError):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    monkeypatch.undo()
    file = checkpoint / "model.safetensors"
    stat = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x12\x34")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(RedipruneError, match="changed since 'vision' was exported; run the same command again with"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False, force=True)


def test_a_failed_export_keeps_the_bundle_there_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    before = file_sha256(bundle.path("manifest.json"))
    monkeypatch.setattr(exporting, "trace", lambda stage, dtype: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", force=True)
    assert file_sha256(Bundle.open(tmp_path / "bundle").path("manifest.json")) == before


def test_too_small_a_disk_is_told_before_anything_is_traced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = traced(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RedipruneError, match="GB free and the bundle needs"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    assert not names


def test_changed_processor_files_and_another_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    config = checkpoint / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"stop_strings": ["##"]}))
    export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)
    assert "##" in bundle.path("processor/generation_config.json").read_text()
    other = shutil.copytree(checkpoint, tmp_path / "other")
    with pytest.raises(RedipruneError, match=r"is a bundle of .*--force"):
        export_bundle(Checkpoint.open(str(other)), tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(RedipruneError, match="current folder"):
        export_bundle(Checkpoint.open(str(checkpoint)), ".")


def test_a_folder_that_is_something_else_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(RedipruneError, match="not a bundle"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "a.txt").read_text() == "mine"


def test_a_graph_that_is_wrong_fails_its_check(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check after tracing compares with PyTorch: weights bound to the wrong initialiser do not pass."""
    from rediprune.export.checkpoint.weights import Weights

    original = Weights.bind

    def bind(self, model, module, *rest):
        used = original(self, model, module, *rest)
        first, second = (model.graph.initializers[f"linear_{n}.bias"] for n in (1, 2))
        first.const_value, second.const_value = second.const_value, first.const_value
        return used

    monkeypatch.setattr(
        Weights,
        "bind",
        lambda self, model, module, *rest: (
            bind(self, model, module, *rest) if hasattr(module, "linear_1") else original(self, model, module, *rest)
        ),
    )
    with pytest.raises(RedipruneError, match="'project' graph differs from PyTorch"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bad_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    def refuse(word: str, name: str | Path = checkpoint) -> None:
        with pytest.raises(RedipruneError, match=word) as error:
            export_bundle(Checkpoint.open(str(name)), tmp_path / "bundle")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "bundle").exists()

    (tmp_path / "empty").mkdir()
    refuse("has no config.json", tmp_path / "empty")
    refuse("check the path", tmp_path / "nowhere")

    weights = checkpoint / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    refuse("truncated")
    weights.write_bytes(good[:4])
    refuse("truncated")
    weights.write_bytes(b"\xff" * 100)
    refuse("truncated")
    weights.rename(checkpoint / "pytorch_model.bin")
    refuse("save_pretrained")
    (checkpoint / "pytorch_model.bin").unlink()
    refuse("has no weights")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    refuse("lacks 1 of 1 weight files")
    (checkpoint / "model.safetensors.index.json").unlink()
    weights.write_bytes(good)

    config = (checkpoint / "config.json").read_text()
    for changes, word in (
        ({"model_type": "blip-2"}, r"'blip-2' is not supported.*llava_next_video"),
        ({"model_type": "no_such_model"}, "'no_such_model' is not supported"),
        ({"text_config": json.loads(config)["text_config"] | {"num_hidden_layers": 9}}, "lacks .* weights"),
        ({"text_config": json.loads(config)["text_config"] | {"intermediate_size": 7}}, "has shape"),
    ):
        edit_config(checkpoint, **changes)
        refuse(word)
        (checkpoint / "config.json").write_text(config)
    (checkpoint / "config.json").write_text("{")
    refuse("damaged")


def test_unknown_precision(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match="fp32, fp16"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", "int3")


def test_a_picture_that_would_not_be_seen_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """vllm#6224: the config's image id is not the tokenizer's."""
    change = {"image_token_index": 5, "image_token_id": 5}
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RedipruneError, match=r"image_token_id is 5, but the tokenizer gives <image> the id \d+"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()
