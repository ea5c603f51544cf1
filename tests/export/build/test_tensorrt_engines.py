"""Engines of the tiny bundle by TensorRT-RTX, which builds without a GPU."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from rediprune.export.build.engine_precisions import Asked, built_precisions, check_precisions
from rediprune.export.build.tensorrt_engines import build_tensorrt
from rediprune.runtime.backends.nvinfer import RTX_TARGETS
from rediprune.runtime.bundle import Bundle, EngineSpec, file_sha256
from rediprune.runtime.errors import RedipruneError

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'rediprune[tensorrt-rtx]'")

RTX = "tensorrt-rtx"
SMALL = ["cache=256", "frames=1:2:4"]


@pytest.fixture(scope="module", params=["llava_qwen2", "llava_qwen2_fp16"], ids=["fp32", "fp16"])
def built(request, bundle_of, tmp_path_factory):
    """A bundle with engines, and what building them took."""
    folder = Path(shutil.copytree(bundle_of(request.param), tmp_path_factory.mktemp("built") / request.param))
    return folder, build_tensorrt(folder, RTX, profile=SMALL)


@pytest.fixture
def bundle(bundle_of, tmp_path):
    return Path(shutil.copytree(bundle_of("llava_qwen2"), tmp_path / "bundle"))


def engines(folder: Path) -> EngineSpec:
    return Bundle.open(folder).manifest.engines[RTX]


def files(folder: Path) -> set[str]:
    place = folder / "engines" / RTX
    return {file.name for file in place.iterdir()} if place.is_dir() else set()


@pytest.mark.rtx
def test_every_stage_is_built_and_noted(built):
    folder, build = built
    stages = Bundle.open(folder).manifest.stages
    del stages["select_clip"]  # its loops end where they like; ONNX Runtime has it
    noted = engines(folder)
    assert noted == build.engines
    assert (noted.library, noted.version) == ("TensorRT-RTX", trt.__version__)
    assert noted.stages == list(stages) and len(stages) == 5
    assert noted.compute_capability == ["sm_80", "sm_86", "sm_89", "sm_120"]
    assert noted.source_sha256 == {name: stage.sha256 for name, stage in stages.items()}
    for name in stages:
        file = EngineSpec.file(RTX, name)
        assert noted.files[file] == file_sha256(folder / file)
    assert files(folder) == {f"{name}.engine" for name in stages}
    assert all(stage.seconds > 0 and stage.peak_memory > 0 and stage.size > 0 for stage in build.stages.values())


@pytest.mark.rtx
def test_engines_have_the_precision_of_their_graphs(built):
    folder, _ = built
    asked = Bundle.open(folder).manifest.precision
    precision = engines(folder).precision
    assert precision.pop("select") == "fp32"  # scores are float32 in every bundle
    assert set(precision.values()) == {asked}


@pytest.mark.rtx
def test_kept_tokens_are_dynamic_and_the_cache_is_not(built):
    folder, _ = built
    profile = engines(folder).profile
    assert profile["select"]["num_keep"] == [[1], [10], [64]]
    assert profile["project"]["kept"] == [[1, 1, 32], [2, 10, 32], [4, 64, 32]]
    assert profile["select"]["features"][2] == [4, 64, 32]
    assert {tuple(size[:3]) for size in profile["language"]["past.key.0"]} == {(1, 2, 256)}
    assert [size[1] for size in profile["language"]["inputs_embeds"]] == [1, 256, 256]


@pytest.mark.rtx
def test_finished_engines_are_reused_until_something_changes(bundle):
    build_tensorrt(bundle, RTX, profile=SMALL)
    stamps = {name: (bundle / "engines" / RTX / name).stat().st_mtime_ns for name in files(bundle)}

    def rebuilt(**options):
        again = build_tensorrt(bundle, RTX, **({"profile": SMALL} | options))
        return {name for name, stage in again.stages.items() if not stage.reused}

    assert rebuilt() == set()
    assert stamps == {name: (bundle / "engines" / RTX / name).stat().st_mtime_ns for name in files(bundle)}
    assert rebuilt(profile=[*SMALL, "kept=1:8:16"]) == {"select", "project"}
    (bundle / EngineSpec.file(RTX, "embed")).write_bytes(b"cut off")
    assert rebuilt(profile=[*SMALL, "kept=1:8:16"]) == {"embed"}
    opened = Bundle.open(bundle)
    opened.manifest.engines[RTX].version = "0.0"
    opened.write_manifest()
    everything = set(opened.manifest.stages) - {"select_clip"}
    assert rebuilt(profile=[*SMALL, "kept=1:8:16"]) == everything
    assert rebuilt(profile=[*SMALL, "kept=1:8:16"], force=True) == everything


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("kept=9:4:16", "kept=9:4:16"),
        ("kept=1:8:65", "cannot exceed patches, which is 64"),
        ("tokens=1:8:512", "cannot exceed cache, which is 256"),
        ("cache=64:128:256", "one length"),
        ("cache=1000000", "positions"),
        ("kept=0:1:2", "from 1 on"),
        ("kept=a", "from 1 on"),
        ("kepd=1:2:3", "no dimension 'kepd'"),
    ],
)
def test_bad_profiles_are_refused_before_anything_is_built(bundle, profile, says):
    with pytest.raises(RedipruneError, match=says):
        build_tensorrt(bundle, RTX, profile=[*(p for p in SMALL if p[:4] != profile[:4]), profile])
    assert files(bundle) == set()


def test_targets_are_those_of_the_library(bundle):
    names = {name.replace("SM", "sm_") for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert names == set(RTX_TARGETS)
    with pytest.raises(RedipruneError, match=r"sm_90.*sm_80, sm_86"):
        build_tensorrt(bundle, RTX, targets=["sm_90"])


@pytest.mark.rtx
def test_an_interrupted_build_leaves_whole_engines_only(bundle):
    def interrupt(stage, what, fraction):
        if stage == "project" and fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tensorrt(bundle, RTX, profile=SMALL, progress=interrupt)
    assert files(bundle) == {"vision.engine", "select.engine"}
    assert engines(bundle).stages == ["vision", "select"]
    again = build_tensorrt(bundle, RTX, profile=SMALL)
    assert [name for name, stage in again.stages.items() if stage.reused] == ["vision", "select"]


@pytest.mark.rtx
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the builder's process under /proc")
def test_a_builder_that_dies_is_one_line(bundle):
    def abort(stage, what, fraction):
        if fraction > 0:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGABRT)

    with pytest.raises(RedipruneError, match=r"died while building 'vision'.*SIGABRT.*--backend ort") as caught:
        build_tensorrt(bundle, RTX, profile=SMALL, progress=abort)
    assert "\n" not in str(caught.value)
    assert files(bundle) == set()
    assert RTX not in Bundle.open(bundle).manifest.engines


@pytest.mark.rtx
def test_a_graph_that_is_refused_names_the_node(bundle):
    import onnx

    opened = Bundle.open(bundle)
    path = bundle / "onnx" / "project.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, path)
    opened.manifest.stages["project"].files["onnx/project.onnx"] = file_sha256(path)
    opened.write_manifest()
    with pytest.raises(RedipruneError, match=r"cannot build 'project'.*NoSuchOperator"):
        build_tensorrt(bundle, RTX, profile=SMALL)
    assert files(bundle) == {"vision.engine", "select.engine"}


def test_too_little_memory_is_said_before_the_build(bundle, monkeypatch):
    monkeypatch.setattr("rediprune.export.build.tensorrt_engines.available_memory", lambda: 100 << 20)
    with pytest.raises(RedipruneError, match=r"'vision' takes up to 0\.4 GB of memory and 0\.1 GB are free"):
        build_tensorrt(bundle, RTX, profile=SMALL)
    assert files(bundle) == set()


@pytest.mark.rtx
def test_engines_of_a_changed_graph_are_stale(built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "bundle")
    opened = Bundle.open(folder)
    stage = opened.manifest.stages["embed"]
    (name,) = (name for name in stage.files if name.endswith(".safetensors"))
    data = folder / name
    bytes_ = data.read_bytes()
    data.write_bytes(bytes_[:-4096] + bytes_[-4096:][::-1])  # other weights, same graph
    sha = file_sha256(data)
    for spec in opened.manifest.stages.values():
        spec.files.update({name: sha} if name in spec.files else {})
    opened.write_manifest()
    with pytest.raises(RedipruneError, match=r"another graph.*rediprune build .* --backend tensorrt-rtx --force"):
        Bundle.open(folder).check_engine(RTX, "embed")
    again = build_tensorrt(folder, RTX, profile=SMALL)
    rebuilt = [name for name, stage in again.stages.items() if not stage.reused]
    assert rebuilt == ["vision", "project", "embed", "language"]  # all read the one weights file


@pytest.mark.rtx
def test_a_truncated_engine_is_refused_and_harms_no_other_backend(built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "bundle")
    engine = folder / EngineSpec.file(RTX, "select")
    engine.write_bytes(engine.read_bytes()[:1000])
    opened = Bundle.open(folder)  # ort does not need it
    with pytest.raises(RedipruneError, match=r"truncated.*rediprune build .* --backend tensorrt-rtx --force"):
        opened.check_engine(RTX, "select")
    opened.check_engine(RTX, "vision")


def test_another_precision_than_asked_is_noticed():
    layers = """Layers:
Name: a_0, LayerType: gemm, Inputs: [ { Name: x, Datatype: Float, Format: linear }], Metadata: [ONNX Layer: a]
Name: b_0, LayerType: gemm, Inputs: [ { Name: y, Datatype: Half }], Metadata: [ONNX Layer: b]\x1f[ONNX Layer: dq]"""
    built = built_precisions(layers)
    half = frozenset({"Half"})
    assert check_precisions("s", [Asked(frozenset({"b"}), half)], built) == "fp16"
    with pytest.raises(RedipruneError, match="a in Float, the graph asks for Half"):
        check_precisions("s", [Asked(frozenset({"a"}), half)], built)
    with pytest.raises(RedipruneError, match="asks for Half and Int8"):
        check_precisions("s", [Asked(frozenset({"b", "dq"}), half | {"Int8"})], built)
    with pytest.raises(RedipruneError, match="precision is unknown"):
        check_precisions("s", [Asked(frozenset({"c"}), half)], built)


@pytest.mark.rtx
@pytest.mark.smoke
def test_command_line(bundle, capsys):
    import typer
    from rediprune.export.cli import add
    from typer.testing import CliRunner

    app = typer.Typer()
    add(app)
    options = ["build", str(bundle), "--backend", RTX, "--target", "sm_89,sm_120", "--json"]
    done = CliRunner().invoke(app, [*options, "--profile", "cache=128", "--profile", "kept=1:4:8"])
    document = json.loads(done.stdout)
    assert document["compute_capability"] == ["sm_89", "sm_120"]
    assert document["profile"]["select"]["num_keep"] == [[1], [4], [8]]
    assert set(document["builds"]) == set(document["stages"])
