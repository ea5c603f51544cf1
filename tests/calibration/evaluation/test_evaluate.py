"""Evaluation: datasets checked, rules that do what they say, scores that resume, and a model that really sees."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rediprune.calibration.evaluation.evaluate import EvaluationOptions, evaluate
from rediprune.calibration.evaluation.evaluation_page import write_page
from rediprune.calibration.evaluation.evaluation_plot import LABELS, plot_scores
from rediprune.calibration.evaluation.question_dataset import media_of, read_questions
from rediprune.calibration.evaluation.scores import Reply, Score
from rediprune.calibration.tasks.media_folder import write_set
from rediprune.export.validate.eager_reference import Reference, Request
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends.eager_torch import eager_model

pytestmark = pytest.mark.calibration


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), "test", seed=5, images=12, clips=2)


def test_the_demo_sees_and_keeps_seeing_when_pruned(
    demo_bundle: Path, dataset: Path, tmp_path: Path, drawn: list[Any]
) -> None:
    """The trained checkpoint, as an engine, answers held-out questions right; random tokens do worse than ours."""
    questions = read_questions(dataset)
    scores = evaluate(demo_bundle, questions, [1.0, 0.15], ["rediprune", "random", "pool2x2"])
    accuracy = {(score.rule, score.keep): score.accuracy for score in scores}
    assert accuracy["rediprune", 1.0] > 0.75
    assert accuracy["rediprune", 0.15] > 0.75
    assert accuracy["random", 0.15] < accuracy["rediprune", 0.15]
    whole, pruned, _, pooled = scores
    assert whole.visual_tokens == whole.all_tokens > pruned.visual_tokens
    assert pooled.visual_tokens * 4 == pooled.all_tokens
    assert pruned.prefill_macs < 0.3 * whole.prefill_macs
    plot_scores(scores, tmp_path / "plot.png", "test")
    assert_drawn(scores, drawn, tmp_path / "plot.png")


def assert_drawn(scores: Sequence[Score], drawn: list[Any], path: Path) -> None:
    """Every score stands in both panels of the one figure, which is a picture in `path`."""
    (figure,) = drawn
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 1100
    for panel, position in zip(
        figure.axes, (lambda s: 100 * s.visual_tokens / s.all_tokens, lambda s: 1e3 * s.first_token), strict=True
    ):
        lines = {line.get_label(): line.lines[0] for line in panel.containers}
        assert set(lines) == {LABELS[score.rule] for score in scores if score.keep < 1}
        for score in scores:
            for rule in [score.rule] if score.keep < 1 else {s.rule for s in scores} - {"pool2x2"}:
                points = np.column_stack(lines[LABELS[rule]].get_data())
                assert np.isclose(points, [position(score), 100 * score.accuracy]).all(axis=1).any()


def test_frames_with_stand_ins_cost_less_and_equal_ones_change_nothing(demo_bundle: Path, dataset: Path) -> None:
    clips = [question for question in read_questions(dataset) if question.video]
    encoded, replies = [], []
    for tolerance in (None, 0, 255):
        pipeline = Pipeline.load(demo_bundle)
        images = {clip.media: media_of(clip, pipeline.bundle, 8, tolerance)[0] for clip in clips}
        encoded.append(
            sum(pipeline.generate("What?", each, max_new_tokens=1).encoded_frames for each in images.values())
        )
        (score,) = evaluate(demo_bundle, clips, [0.15], options=EvaluationOptions(frame_tolerance=tolerance))
        replies.append([reply.token_ids for reply in score.replies])
    assert replies[0] == replies[1]
    assert encoded[0] >= encoded[1] > encoded[2] == len({clip.media for clip in clips})


@pytest.mark.parametrize("keep", [1.0, 0.15])
def test_the_demo_answers_as_in_eager_pytorch(keep: float, demo_bundle: Path, dataset: Path) -> None:
    pipeline = Pipeline.load(demo_bundle)
    reference = Reference(eager_model(pipeline.bundle), pipeline.processor)
    for question in [q for q in read_questions(dataset) if not q.video][:16]:
        expected = reference.answer(Request(question.question, [question.media], keep=keep, max_new_tokens=8))
        answer = pipeline.generate(question.question, [question.media], keep=keep, max_new_tokens=8, temperature=0.0)
        assert answer.token_ids == expected.token_ids


def test_an_interrupted_run_goes_on_where_it_stopped(
    demo_bundle: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = read_questions(dataset)[:4]
    arguments = (demo_bundle, questions, [1.0, 0.15], ["rediprune", "random"])
    whole = evaluate(*arguments)
    out = tmp_path / "replies.jsonl"
    generate = Pipeline.generate
    asked: list[str] = []

    def interrupted(self: Pipeline, prompt: str, *given, **options):
        if len(asked) == 10:
            raise KeyboardInterrupt
        asked.append(prompt)
        return generate(self, prompt, *given, **options)

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, out=out)
    with open(out, "a") as file:
        file.write('{"key": "broken off')
    asked.clear()
    scores = evaluate(*arguments, out=out)
    assert asked == [questions[at].question for at in (2, 3)]  # of 12, ten were answered before
    for score, expected in zip(scores, whole, strict=True):
        assert [r.answer for r in score.replies] == [r.answer for r in expected.replies]
        assert score.right == expected.right and score.visual_tokens == expected.visual_tokens
    asked.clear()
    assert evaluate(*arguments, out=out) == scores and not asked
    with pytest.raises(KeyboardInterrupt):  # other questions are other replies
        asked += ["?"] * 10
        evaluate(demo_bundle, questions[:2], [1.0], ["rediprune"], out=out)
    with pytest.raises(RedipruneError, match="another file"):
        evaluate(*arguments, out=questions[0].media)


def test_backends_answer_alike_to_the_question(
    demo_bundle: Path, dataset: Path, tmp_path: Path, drawn: list[Any]
) -> None:
    questions = read_questions(dataset)
    chosen = [*questions[:4], *(q for q in questions if q.video)][:5]
    ours, eager = (
        evaluate(demo_bundle, chosen, [1.0, 0.15], ["rediprune", "random"], EvaluationOptions(backend), data="few")
        for backend in ("ort", "eager")
    )
    for one, other in zip(ours, eager, strict=True):
        assert one.same_answers(other) == len(chosen) == len(one.replies)
        assert one.visual_tokens == other.visual_tokens and one.prefill_macs == other.prefill_macs
    page = tmp_path / "page.md"
    write_page([*ours, *eager], page, demo_bundle, "rediprune evaluate few")
    text = page.read_text()
    assert "rediprune evaluate few" in text and "![accuracy against tokens and time](page.png)" in text
    assert f"| few | eager | 3 | {3 * len(chosen)} of {3 * len(chosen)} |" in text
    assert f"**{100 * ours[0].accuracy:.1f}**" in text
    assert_drawn(ours, drawn, tmp_path / "page.png")


def test_the_page_says_where_pruning_hurts(demo_bundle: Path, tmp_path: Path) -> None:
    def score(keep: float, rights: str) -> Score:
        replies = [Reply("a", right == "1", 9, 10, 0.1, 1e6) for right in rights]
        return Score("few", "ort", "rediprune", keep, ["count", "count", "place", "place"], replies)

    write_page([score(1.0, "1111"), score(0.5, "1111"), score(0.1, "1011")], tmp_path / "page.md", demo_bundle, "")
    text = (tmp_path / "page.md").read_text()
    assert "- keep 0.5: +0.0 points; no kind loses 5 points" in text
    assert "- keep 0.1: -25.0 points; count 100 → 50" in text


def test_an_unknown_rule_is_refused(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(RedipruneError, match="rediprune, diversity"):
        evaluate(bundle_of("llava"), [], [0.5], ["wishful"])
