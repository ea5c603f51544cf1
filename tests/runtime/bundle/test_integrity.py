"""Nothing in a bundle is used before it was checked, and every refusal says how to mend it."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import MANIFEST, Bundle, EngineSpec, file_sha256
from rediprune.runtime.bundle.seal import seal
from rediprune.runtime.cli.app import app
from typer.testing import CliRunner


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_of("llava"), tmp_path / "bundle"))


@pytest.fixture
def small(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "small").folder


def test_manifest_holds_the_contract(bundle: Path, checkpoint_of: Callable[[str], Path]) -> None:
    manifest = Bundle.open(bundle).manifest
    source = checkpoint_of("llava")
    assert manifest.source.config_sha256 == file_sha256(source / "config.json")
    assert manifest.source.weights == {"model.safetensors": file_sha256(source / "model.safetensors")}
    assert list(manifest.stages) == ["vision", "select", "select_clip", "project", "embed", "language"]
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
    assert on_disk - {MANIFEST, "README.md"} == set(Bundle.open(bundle).expected_files())


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
        (lambda m: m | {"stages": m["stages"] | {"vision": m["stages"]["vision"] | {"file": "..\\x.onnx"}}}, "outside"),
        (lambda m: m | {"stages": m["stages"] | {"vision": m["stages"]["vision"] | {"file": "C:/x.onnx"}}}, "outside"),
        (lambda m: m | {"stages": m["stages"] | {"vision": m["stages"]["vision"] | {"file": "README.md"}}}, "no hash"),
        (lambda m: m | {"newline": "onnx/newline.npy"}, "no hash"),
        (lambda m: m | {"files": m["files"] | {"onnx/weights/model.safetensors": "0" * 64}}, "two hashes"),
        (lambda m: [m], "cannot be read"),
    ],
)
def test_an_edited_manifest_is_refused(bundle: Path, change: Callable[[dict], object], word: str) -> None:
    path = bundle / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RedipruneError, match=word) as error:
        Bundle.open(bundle)
    assert "rediprune export" in str(error.value)


@pytest.mark.parametrize("change", [{"layers": 1}, {"layers": 10**9}, {"kv_heads": 7}, {"head_width": 8}])
def test_a_decoder_that_is_not_the_graphs_is_refused(bundle: Path, change: dict[str, int]) -> None:
    """The cache would be made in another size than the graph reads; sealed anew, no digest tells."""
    document = json.loads((bundle / "manifest.json").read_text())
    document["decoder"] |= change
    document["digest"] = seal(document)
    (bundle / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(RedipruneError, match="'decoder' are not those of the language stage's cache"):
        Bundle.open(bundle)


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
    data.write_bytes(good[:-4] + b"\0\0\0\1")  # damaged on disk, its size and the time of its last write put back
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for remember in (True, False):
        with pytest.raises(RedipruneError, match="damaged"):
            Bundle.open(bundle, remember=remember)
    data.unlink()
    with pytest.raises(RedipruneError, match=r"onnx/weights/model\.safetensors' is missing"):
        Bundle.open(bundle)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(good)
    os.symlink(elsewhere, data)
    with pytest.raises(RedipruneError, match="leads outside"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "location", ["../../secret.bin", "..\\..\\secret.bin", "beside.bin", "weights/../beside.bin", "/etc/hostname", ""]
)
def test_external_data_that_is_not_listed(location: str, small: Path, write_graph: Callable[[Path, str], None]) -> None:
    """A graph whose weights are not in a listed file of the bundle is refused, even where its hash was made to match."""
    opened = Bundle.open(small)
    for place in (small.parent / "secret.bin", small / "onnx" / "beside.bin"):
        shutil.copyfile(small / "onnx" / "vision.onnx.data", place)
    spec = opened.manifest.stages["vision"]
    write_graph(small / spec.file, location)
    spec.files[spec.file] = file_sha256(small / spec.file)
    opened.write_manifest()
    with pytest.raises(RedipruneError, match="which the manifest does not list") as error:
        Bundle.open(small)
    assert repr(location) in str(error.value) and "\n" not in str(error.value)


def test_external_data_that_leave_the_manifest(small: Path) -> None:
    """Where the weights lie is looked up again when the manifest changes, not only when the graph does."""
    opened = Bundle.open(small)
    del opened.manifest.stages["vision"].files["onnx/vision.onnx.data"]
    opened.write_manifest()
    with pytest.raises(RedipruneError, match="which the manifest does not list"):
        Bundle.open(small)


def test_a_graph_that_is_none(small: Path) -> None:
    opened = Bundle.open(small)
    spec = opened.manifest.stages["vision"]
    (small / spec.file).write_bytes(b"\xff\xff\xff no graph")
    spec.files[spec.file] = file_sha256(small / spec.file)
    opened.write_manifest()
    with pytest.raises(RedipruneError, match="no ONNX graph"):
        Bundle.open(small)


def test_a_graph_in_a_backend_s_own_operators_keeps_to_the_files_that_are_compared(
    small: Path, write_graph: Callable[[Path, str], None]
) -> None:
    opened = Bundle.open(small)
    spec, own = opened.manifest.stages["vision"], "onnx/vision.ort.onnx"
    shutil.copyfile(small / "onnx/vision.onnx.data", small / "onnx/other.data")
    for location, good in (("vision.onnx.data", True), ("vision.ort.onnx.data", True), ("other.data", False)):
        shutil.copyfile(small / "onnx/vision.onnx.data", small / f"{own}.data")
        write_graph(small / own, location)
        names = (own, f"{own}.data", "onnx/other.data")
        opened.manifest.engines["ort"] = EngineSpec(
            library="onnxruntime",
            version="1",
            stages=["vision"],
            source_sha256={"vision": spec.sha256},
            files={name: file_sha256(small / name) for name in names},  # the last is listed, but nothing compares it
        )
        opened.write_manifest()
        if good:
            assert Bundle.open(small).graph("ort", "vision") == small / own
        else:
            with pytest.raises(RedipruneError, match=r"'other\.data', which the manifest does not list"):
                Bundle.open(small).graph("ort", "vision")
    opened.manifest.engines["ort"].files = {}
    opened.write_manifest()
    with pytest.raises(RedipruneError, match=r"not listed in the manifest; build it again with: rediprune build"):
        Bundle.open(small).check_engine("ort", "vision", hashes=False)


@pytest.mark.parametrize(
    "name",
    [
        "video_preprocessor_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "additional_chat_templates/tool.jinja",
        "tokenizer.4.0.json",
        "tokenization_own.py",
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_added_to_the_processor_is_refused(name: str, verify: bool, small: Path) -> None:
    Bundle.open(small)
    added = small / "processor" / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("{}")
    with pytest.raises(RedipruneError, match=r"is not one of the bundle's files.*remove it") as error:
        Bundle.open(small, verify)
    assert Path(name).parts[0] in str(error.value)


def test_a_folder_that_is_linked_into_the_processor_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (small / "processor" / "additional_chat_templates").symlink_to(tmp_path / "templates")
    with pytest.raises(RedipruneError, match="is not one of the bundle's files"):
        Bundle.open(small)


def test_files_that_nobody_reads_may_lie_in_a_bundle(small: Path) -> None:
    for name in ("README.md", "notes.txt", ".gitattributes", "onnx/leftover.bin", "processor/.DS_Store"):
        (small / name).write_text("of no matter")
    (small / "processor" / ".cache").mkdir()
    Bundle.open(small)


def test_an_added_video_setting_does_not_change_what_is_answered(bundle: Path) -> None:
    """A folder that frames would be counted by: the command that checks the files says so too."""
    (bundle / "processor" / "video_preprocessor_config.json").write_text('{"num_frames": 3}')
    with pytest.raises(RedipruneError, match=r"video_preprocessor_config\.json"):
        Pipeline.load(bundle)
    refused = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert isinstance(refused.exception, RedipruneError) and "as they were" not in refused.output


def test_a_file_that_cannot_be_read_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("rediprune.runtime.bundle.integrity.file_sha256", closed)
    with pytest.raises(RedipruneError, match=r"tokenizer\.json' cannot be read \(Permission denied\)"):
        Bundle.open(small, remember=False)


def test_a_read_only_bundle_works(bundle: Path, photo: Path) -> None:
    os.chmod(bundle, 0o555)
    try:
        assert Pipeline.load(bundle).generate("What is this?", [photo], max_new_tokens=1).token_ids
    finally:
        os.chmod(bundle, 0o755)
