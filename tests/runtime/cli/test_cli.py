"""The command line as a user meets it: arguments, output and an exit code, in this process or in one of its own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

CommandLine = Callable[..., subprocess.CompletedProcess]  # see `rediprune` of tests/conftest.py


@pytest.mark.parametrize(
    "command", ["run", "inspect", "export", "build", "validate", "evaluate", "bench", "new-checkpoint"]
)
def test_help_has_an_example(command: str, rediprune: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert f"rediprune {command}" in rediprune(command, "--help").stdout


def test_run_prints_the_answer_and_what_it_took(
    bundle_of: Callable[[str], Path],
    photo: Path,
    tmp_path: Path,
    rediprune: CommandLine,
    rediprune_process: CommandLine,
) -> None:
    picture = tmp_path / "kept.png"
    options = ("--prompt", "What is this?", "--keep", 0.15, "--max-new-tokens", 6, "--show", picture)
    plain = rediprune_process("run", bundle_of("llava"), "--image", photo, *options)
    assert "kept 10 of 64 visual tokens" in plain.stderr
    assert "select" in plain.stderr and "peak memory" in plain.stderr
    with Image.open(picture) as drawn:
        assert drawn.width >= 448
    document = json.loads(rediprune("run", bundle_of("llava"), "--image", photo, *options, "--json").stdout)
    assert document["text"].strip() == plain.stdout.strip()
    assert document["kept_tokens"] == 10 and len(document["kept"][0][0]) == 10
    assert document["seconds"]["time_to_first_token"] > document["seconds"]["select"] > 0


@pytest.mark.family
def test_two_turns_video_and_count(bundle_of: Callable[[str], Path], clip: Path, rediprune: CommandLine) -> None:
    turns = ("--prompt", "What happens?", "--prompt", "And then?")
    done = rediprune(
        "run",
        bundle_of("video_llava"),
        "--video",
        clip,
        "--frames",
        2,
        "--count",
        3,
        *turns,
        "--json",
        "--max-new-tokens",
        4,
    )
    first, second = json.loads(done.stdout)
    assert first["kept_tokens"] == second["kept_tokens"] == 6
    assert second["prompt_tokens"] > first["prompt_tokens"]
    assert second["seconds"]["vision"] == 0


@pytest.mark.family
def test_inspect_of_pictures_of_any_size(rediprune: CommandLine, bundle_of: Callable[[str], Path]) -> None:
    shown = rediprune("inspect", bundle_of("qwen3_vl")).stdout
    assert "pictures of any size" in shown and "image: as many tokens as its size takes" in shown


def test_export_build_inspect_and_validate(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, rediprune: CommandLine, corrupt: Callable[..., Path]
) -> None:
    bundle = tmp_path / "bundle"
    done = rediprune("export", checkpoint_of("llava"), "-o", bundle, "--copy")
    assert "rediprune run" in done.stdout and "vision" in done.stderr
    assert json.loads(rediprune("build", bundle, "--json").stdout)["library"] == "onnxruntime"
    manifest = json.loads(rediprune("inspect", bundle, "--json").stdout)
    assert manifest["engines"]["ort"]["stages"] == ["vision", "select", "select_clip", "project", "embed", "language"]
    assert "LLaVA-1.5" in rediprune("inspect", bundle).stdout
    assert "equal to eager PyTorch" in rediprune("validate", bundle).stdout
    assert manifest["stages"]["language"]["file"] == "onnx/language.onnx"
    report = json.loads(rediprune("validate", corrupt(bundle, tmp_path / "bad", "language"), "--json", code=1).stdout)
    assert report["failing_stages"] == ["language"]


def test_bad_input_is_one_line_and_exit_code_2(
    bundle_of: Callable[[str], Path],
    photo: Path,
    tmp_path: Path,
    rediprune: CommandLine,
    rediprune_process: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bundle = bundle_of("llava")
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "empty.mp4").write_bytes(b"")
    ask = ("--prompt", "What is this?")

    def refused(command: CommandLine, *arguments: object) -> None:
        done = command(*arguments, code=2)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("error: "), (arguments, done.stderr)
        assert len(lines[0]) > 25

    for arguments in (
        ("run", tmp_path, *ask),
        ("run", tmp_path / "nowhere", *ask),
        ("run", bundle, *ask, "--image", tmp_path / "text.jpg"),
        ("run", bundle, *ask, "--image", tmp_path / "gone.jpg"),
        ("run", bundle, *ask, "--image", photo, "--keep", 0),
        ("run", bundle, *ask, "--image", photo, "--keep", 1.5),
        ("run", bundle, *ask, "--image", photo, "--keep", "nan"),
        ("run", bundle, *ask, "--image", photo, "--count", 0),
        ("run", bundle, *ask, "--image", photo, "--count", 65),
        ("run", bundle, *ask, "--image", photo, "--keep", 0.5, "--count", 5),
        ("run", bundle, *ask, "--image", photo, "--alpha", "inf"),
        ("run", bundle, *ask, "--image", photo, "--tau", "nan"),
        ("run", bundle, *ask, "--image", photo, "--show", tmp_path / "no" / "kept.png"),
        ("run", bundle, *ask, "--show", tmp_path / "kept.png"),
        ("run", bundle, *ask, "--image", photo, "--show", tmp_path / "kept.xyz"),
        ("run", bundle, *ask, "--image", photo, "--threads", 100_000),
        ("run", bundle, "--prompt", "  ", "--image", photo),
        ("validate", bundle, "--image", tmp_path / "gone.jpg"),
        ("validate", bundle, "--video", tmp_path / "empty.mp4"),
        ("evaluate", bundle, "--split", "foo"),
        ("evaluate", bundle, "--data", photo),
        ("evaluate", bundle, "--page", tmp_path / "page.txt"),
        ("evaluate", bundle, "--images", 0, "--clips", 0),
        ("bench", bundle, "--keeps", "1,2"),
        ("run", bundle, *ask, "--video", photo),
        ("run", bundle, *ask, "--backend", "abacus"),
        ("run", bundle, "--prompt", "word " * 3000),
        ("run", bundle_of("video_llava"), *ask, "--video", tmp_path / "empty.mp4"),
        ("run", bundle_of("video_llava"), *ask, "--video", tmp_path / "text.jpg"),
        ("export", tmp_path, "-o", tmp_path / "bundle"),
        ("export", tmp_path / "nowhere", "-o", tmp_path / "bundle"),
        ("build", bundle, "--backend", "abacus"),
        ("validate", bundle, "--stage", "ears"),
        ("new-checkpoint", tmp_path / "made", "--family", "giraffe"),
    ):
        refused(rediprune, *arguments)
    for arguments in (
        ("run", bundle, *ask, "--image", tmp_path / "text.jpg"),  # fails while the models are loading
        ("export", tmp_path, "-o", tmp_path / "bundle"),
    ):
        refused(rediprune_process, *arguments)


def test_wrong_usage_is_exit_code_2(bundle_of: Callable[[str], Path], rediprune: CommandLine) -> None:
    rediprune("run", bundle_of("llava"), "--bogus", code=2)
    rediprune("run", code=2)


_INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
sys.meta_path.insert(0, Interrupts())
from rediprune.runtime.__main__ import main
main()
"""


@pytest.mark.process
@pytest.mark.parametrize("moment", ["importing", "tracing"])
def test_ctrl_c_leaves_nothing_half_written(moment: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ["export", str(checkpoint_of("llava")), "-o", str(tmp_path / "b")]
    program = ["-c", _INTERRUPTED_WHILE_IMPORTING] if moment == "importing" else ["-m", "rediprune.runtime"]
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if moment == "tracing":
        while process.poll() is None and not list(tmp_path.glob(".b.partial/onnx/vision.onnx")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and errors.strip().endswith("interrupted")
    assert not (tmp_path / "b").exists()


def test_the_runtime_needs_no_torch(bundle_of: Callable[[str], Path], photo: Path, rediprune: CommandLine) -> None:
    """With torch, onnx and the exporters' packages impossible to import, a bundle answers as before."""
    hidden = ["torch", "onnx", "onnx_ir", "onnxscript", "polygraphy", "accelerate", "safetensors.torch"]
    script = f"""
import sys
for name in {hidden}:
    sys.modules[name] = None
from rediprune.runtime import Pipeline
answer = Pipeline.load({str(bundle_of("llava"))!r}).generate("What is this?", [{str(photo)!r}], max_new_tokens=5)
print(answer.token_ids)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(
        rediprune(
            "run", bundle_of("llava"), "--image", photo, "--prompt", "What is this?", "--max-new-tokens", 5, "--json"
        ).stdout
    )
    assert json.loads(done.stdout) == document["token_ids"]


def test_a_moved_bundle_answers(
    bundle_of: Callable[[str], Path],
    photo: Path,
    tmp_path: Path,
    rediprune: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing in a bundle depends on where it lies, nor on the checkpoint being there."""
    moved = Path(shutil.copytree(bundle_of("llava"), tmp_path / "elsewhere"))
    ask = ("--image", photo, "--prompt", "What is this?", "--max-new-tokens", 4, "--json")
    monkeypatch.chdir(tmp_path)
    there, here = (json.loads(rediprune("run", b, *ask).stdout) for b in (moved, bundle_of("llava")))
    assert there["token_ids"] == here["token_ids"]
