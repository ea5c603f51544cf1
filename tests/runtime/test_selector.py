"""Which tokens of a request are kept: each frame on its own, one budget for all, and as many as a picture is worth."""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rediprune.graphs.selection.clip_numpy import select_clip_tokens
from rediprune.graphs.selection.numpy_selection import pool_query
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.bundle import AutoKeep, Bundle

QUESTION = "What is left of the red ball?"
AUTO = AutoKeep(
    thresholds={"frame": 0.45, "clip": 0.4},
    most=0.5,
    budget=1.0,
    accuracy={"frame": 90.0},
    baseline={"frame": 91.0},
    tokens={"frame": 0.1},
    questions=100,
    data="built-in",
)


class Noted:
    """A stage that notes what it is given."""

    batch = 1

    def __init__(self, inner: Any):
        self.inner, self.inputs = inner, []

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.inputs.append({name: np.asarray(array) for name, array in inputs.items()})
        return self.inner.run(inputs)


class FrameByFrame:
    """The choice over a clip by the stage that chooses in each frame: both must then lead to the same answer."""

    batch = 1

    def __init__(self, select: Any):
        self.select = select

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        given = {name: inputs[name] for name in ("features", "text_embeds", "num_keep", "alpha")}
        outputs = self.select.run(given | {"tau": np.array(0.0)})
        indices, kept = np.asarray(outputs["indices"]), np.asarray(outputs["kept"])
        patches = np.asarray(inputs["features"]).shape[1]
        flat = (indices + patches * np.arange(len(indices))[:, None]).ravel()
        return {"indices": flat, "kept": kept.reshape(-1, kept.shape[2])}


@pytest.fixture
def video_pipeline(bundle_of: Callable[[str], Path]) -> Pipeline:
    return Pipeline.load(bundle_of("llava_next_video"))


def expected(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return select_clip_tokens(
        inputs["features"],
        pool_query(inputs["text_embeds"]),
        int(inputs["num_keep"]),
        float(inputs["alpha"]),
        int(inputs["min_per_frame"]),
        float(inputs["threshold"]),
    )


def test_a_clip_has_one_budget(video_pipeline: Pipeline, clip: Path) -> None:
    noted = Noted(video_pipeline.stage("select_clip"))
    with video_pipeline.replaced(select_clip=noted):
        answer = video_pipeline.generate(
            QUESTION, videos=[clip], frames=4, keep=3, scope="clip", min_per_frame=2, max_new_tokens=2
        )
    (inputs,), (kept,) = noted.inputs, answer.kept
    assert (inputs["num_keep"], inputs["min_per_frame"], inputs["threshold"]) == (3, 2, -math.inf)
    frames, patches = inputs["features"].shape[:2]
    flat = np.concatenate([indices + at * patches for at, indices in enumerate(kept)])
    assert frames == len(kept) == 4 and np.array_equal(flat, expected(inputs))
    assert answer.kept_tokens == 12 and min(map(len, kept)) >= 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llava_next_video", {"frames": 4, "keep": 3}),
        ("llava_next_video", {"frames": 4, "keep": 0.5, "positions": "original"}),
        ("video_llava", {"frames": 4, "keep": 3}),
        ("qwen3_vl", {"frames": 4, "keep": 2}),
    ],
)
def test_answers_are_the_same_where_the_choice_is(
    bundle_of: Callable[[str], Path], clip: Path, name: str, options: dict[str, Any]
) -> None:
    pipeline = Pipeline.load(bundle_of(name))
    asked = {"videos": [clip], "max_new_tokens": 6, "temperature": 0.0, **options}
    theirs = pipeline.generate(QUESTION, **asked)
    with pipeline.replaced(select_clip=FrameByFrame(pipeline.stage("select"))):
        ours = pipeline.generate(QUESTION, scope="clip", **asked)
    assert ours.token_ids == theirs.token_ids and ours.kept_tokens == theirs.kept_tokens
    assert all(np.array_equal(a, b) for a, b in zip(ours.kept[0], theirs.kept[0], strict=True))


def test_images_share_a_budget(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    answer = pipeline.generate(QUESTION, [photo, photo], keep=8, scope="clip", min_per_frame=1, max_new_tokens=1)
    first, second = (len(kept[0]) for kept in answer.kept)
    assert first + second == 16 == answer.kept_tokens
    assert second == 1  # the same picture again: nothing in it is new
    apart = pipeline.generate(QUESTION, [photo, photo], keep=8, max_new_tokens=1)
    assert [kept.shape for kept in apart.kept] == [(1, 8), (1, 8)]


def test_tiles_share_a_budget_where_they_are_pruned(video_pipeline: Pipeline, photo: Path) -> None:
    whole = video_pipeline.generate(QUESTION, [photo], keep=3, scope="clip", max_new_tokens=1)
    assert whole.kept_tokens == whole.visual_tokens
    pruned = video_pipeline.generate(QUESTION, [photo], keep=3, scope="clip", prune_tiles=True, max_new_tokens=1)
    tiles = len(pruned.kept[0])
    assert sum(map(len, pruned.kept[0])) == 3 * tiles and len(set(map(len, pruned.kept[0]))) > 1


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_keep_auto_ends_at_the_threshold(video_pipeline: Pipeline, clip: Path, scope: str) -> None:
    video_pipeline.bundle.manifest.auto_keep = AUTO
    noted = Noted(video_pipeline.stage("select_clip"))
    with video_pipeline.replaced(select_clip=noted):
        answer = video_pipeline.generate(QUESTION, videos=[clip], frames=3, keep="auto", scope=scope, max_new_tokens=1)
    patches = noted.inputs[0]["features"].shape[1]
    assert {int(inputs["num_keep"]) for inputs in noted.inputs} == {patches // 2}
    assert len(noted.inputs) == (1 if scope == "clip" else 3)
    flat = np.concatenate([expected(inputs) + at * patches for at, inputs in enumerate(noted.inputs)])
    ours = np.concatenate([indices + at * patches for at, indices in enumerate(answer.kept[0])])
    assert np.array_equal(ours, flat)
    assert 3 <= answer.kept_tokens < 3 * patches // 2


def test_keep_auto_needs_a_calibrated_bundle(video_pipeline: Pipeline, clip: Path) -> None:
    with pytest.raises(
        RedipruneError, match=r"keep 'auto' needs a threshold for scope 'frame'.*--keep-auto accuracy=1"
    ):
        video_pipeline.generate(QUESTION, videos=[clip], keep="auto")
    video_pipeline.bundle.manifest.auto_keep = AUTO.model_copy(update={"thresholds": {"frame": 0.5}})
    with pytest.raises(RedipruneError, match="for scope 'clip'"):
        video_pipeline.generate(QUESTION, videos=[clip], keep="auto", scope="clip")


def test_more_of_each_frame_than_on_average_is_refused(video_pipeline: Pipeline, clip: Path) -> None:
    with pytest.raises(RedipruneError, match="min_per_frame must lie between 1 and the 2 tokens kept"):
        video_pipeline.generate(QUESTION, videos=[clip], frames=2, keep=2, scope="clip", min_per_frame=3)


def test_a_bundle_of_an_earlier_version_selects_by_frame_and_refuses_the_rest(
    bundle_of: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle_of("llava"), tmp_path / "old"))
    old = Bundle.open(folder)
    del old.manifest.stages["select_clip"]
    old.write_manifest()
    pipeline = Pipeline.load(folder)
    assert pipeline.generate(QUESTION, [photo], keep=4, max_new_tokens=1).kept_tokens == 4
    with pytest.raises(
        RedipruneError, match=r"scope 'clip' needs the stage 'select_clip'.*export the checkpoint again"
    ):
        pipeline.generate(QUESTION, [photo], keep=4, scope="clip")


def test_as_many_tokens_as_there_is_time_for(video_pipeline: Pipeline, clip: Path, monkeypatch: Any) -> None:
    asked: list[tuple[float, int]] = []

    def longest_within(seconds: float, most: int) -> int:
        asked.append((seconds, most))
        return most - 4

    monkeypatch.setattr(video_pipeline.prefill_time, "longest_within", longest_within)
    answer = video_pipeline.generate(QUESTION, videos=[clip], frames=2, first_token=1000.0, max_new_tokens=1)
    (seconds, most), text = asked[0], answer.prompt_tokens
    assert 900 < seconds < 980 and most == text + answer.visual_tokens
    assert answer.kept_tokens == 2 * ((most - 4 - text) // 2) > 2 and not answer.warnings
    few = video_pipeline.generate(QUESTION, videos=[clip], frames=2, first_token=1000.0, keep=1, max_new_tokens=1)
    assert few.kept_tokens == 2  # keep is the most


def test_a_time_that_cannot_be_met_is_said(video_pipeline: Pipeline, clip: Path) -> None:
    answer = video_pipeline.generate(QUESTION, videos=[clip], frames=2, first_token="0.01ms", max_new_tokens=1)
    assert answer.kept_tokens == 2
    assert any("cannot come within 0 ms" in warning for warning in answer.warnings)
