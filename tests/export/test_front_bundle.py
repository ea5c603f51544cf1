"""`rediprune export --stages`: a bundle without the language stage and without the decoder's weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import Bundle

from ..support.command_line import CommandLine

FRONT = "vision,select,project,embed"
STAGES = ["vision", "select", "select_clip", "project", "embed"]


@pytest.fixture
def front(rediprune: CommandLine, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    done = rediprune("export", checkpoint_of("llava"), "-o", tmp_path / "front", "--stages", FRONT)
    assert "5 stages" in done.stdout and "--decoder" in done.stdout
    return tmp_path / "front"


def test_it_selects_as_the_whole_bundle_and_holds_no_weight_of_the_decoder(
    front: Path, bundle_of: Callable[[str], Path], checkpoint_of: Callable[[str], Path], cat: Path
) -> None:
    manifest = Bundle.open(front).manifest
    assert list(manifest.stages) == STAGES and not manifest.refers
    size = sum(file.stat().st_size for file in front.rglob("*") if file.is_file())
    weights = sum(stage.weight_bytes for stage in manifest.stages.values())
    assert weights <= size < weights + (1 << 20)
    assert not list(front.rglob("*language*")) and not list(front.rglob("*.safetensors"))
    whole, alone = Pipeline.load(bundle_of("llava"), "ort"), Pipeline.load(front, "ort")
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    one, two = (pipe.prepare(question, [cat]).prompt for pipe in (whole, alone))
    assert one.ids == two.ids and np.array_equal(one.embeds, two.embeds)


def test_exporting_it_again_leaves_it_and_all_stages_replace_it(
    front: Path, rediprune: CommandLine, checkpoint_of: Callable[[str], Path]
) -> None:
    manifest = front / "manifest.json"
    before = manifest.stat().st_mtime_ns
    rediprune("export", checkpoint_of("llava"), "-o", front, "--stages", FRONT)
    assert manifest.stat().st_mtime_ns == before
    assert f"--stages {','.join(STAGES)}" in Bundle.open(front).manifest.rebuild_command(front)
    rediprune("export", checkpoint_of("llava"), "-o", front, "--stages", f"{FRONT},language")
    assert "language" in Bundle.open(front).manifest.stages


def test_what_needs_answers_refuses_it(front: Path, rediprune: CommandLine, tmp_path: Path) -> None:
    for command, words in (
        (("run", front, "--prompt", "Why?"), "--decoder"),
        (("serve", front, "--port", 0), "--decoder"),
        (("validate", front), "without its language stage"),
        (("bench", front), "without its language stage"),
        (("optimize", front, "-o", tmp_path / "fast"), "without its language stage"),
    ):
        assert words in rediprune(*command, code=2).stderr.replace("\n", " ")


def test_other_choices_and_families_are_refused(
    rediprune: CommandLine, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    done = rediprune("export", checkpoint_of("llava"), "-o", tmp_path / "a", "--stages", "vision,select", code=2)
    assert f"takes {FRONT},language or {FRONT}" in done.stderr.replace("\n", " ")
    with pytest.raises(RedipruneError, match="all stages"):
        checkpoint = Checkpoint.open(str(checkpoint_of("llava_next")))
        export_bundle(checkpoint, tmp_path / "b", without_language=True)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
