"""The plug-in for lmms-eval answers its three kinds of requests. Runs where lmms-eval is installed (docs/lmms-eval.md)."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rediprune.runtime import Pipeline, RedipruneError

pytest.importorskip("lmms_eval", reason="needs lmms-eval and integrations/lmms_eval in the environment")
pytest.importorskip("rediprune_lmms_eval")

from rediprune_lmms_eval.drawn import TASK, write_task
from rediprune_lmms_eval.model import Rediprune

QUESTION = "What is left of the red ball?"
SETTINGS = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "num_beams": 1}


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of("llava")


def model_of(bundle: Path, document: Any, **settings: Any) -> Rediprune:
    model = Rediprune(bundle=str(bundle), threads=1, **settings)
    model.task_dict = {"task": {"test": [document]}}
    return model


def chat(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": document["kind"], "url": document["url"]}, {"type": "text", "text": QUESTION}]}]  # fmt: skip


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments, metadata={})


def test_answers_are_those_of_the_pipeline_at_the_same_keep(bundle: Path, photo: Path) -> None:
    document = {"kind": "image", "url": Image.open(photo).convert("RGB")}
    model = model_of(bundle, document, keep=9)
    (result,) = model.generate_until([asked("", chat, SETTINGS, 0, "task", "test")])
    expected = Pipeline.load(bundle).generate(QUESTION, [photo], keep=9, max_new_tokens=5, temperature=0.0)
    assert result.text == expected.text
    assert result.token_counts.input_tokens == expected.prompt_tokens + 9
    assert result.token_counts.output_tokens == len(expected.token_ids)


def test_a_clip_is_shown_frame_by_frame_to_a_family_without_videos(bundle: Path, clip: Path) -> None:
    model = model_of(bundle, {"kind": "video", "url": str(clip)}, keep=4, frames=3)
    model.generate_until([asked("", chat, SETTINGS, 0, "task", "test")])
    assert model.answers[0].kept_tokens == 12


def test_the_likelihood_of_a_continuation(bundle: Path, photo: Path) -> None:
    document = {"kind": "image", "url": photo}
    model = model_of(bundle, document, keep=9)
    picture = lambda _: [Image.open(photo).convert("RGB")]  # noqa: E731
    ((likelihood, greedy),) = model.loglikelihood([asked(QUESTION, " left", picture, 0, "task", "test")])
    ids = model.pipeline.processor.tokenizer(" left", add_special_tokens=False)["input_ids"]
    answer = Pipeline.load(bundle).generate(QUESTION, [photo], keep=9, max_new_tokens=len(ids), temperature=0.0)
    assert likelihood < 0 and greedy == (answer.token_ids == ids)
    tokenizer = model.pipeline.processor.tokenizer
    said = tokenizer.decode(answer.token_ids[:1])
    if tokenizer(said, add_special_tokens=False)["input_ids"] == answer.token_ids[:1]:
        ((best, certain),) = model.loglikelihood([asked(QUESTION, said, picture, 0, "task", "test")])
        assert certain and best >= math.log(1 / model.pipeline.bundle.manifest.decoder.vocabulary)


def test_rounds_see_the_answers_before_them(bundle: Path, photo: Path) -> None:
    seen: list[list[str]] = []

    def next_round(document: Any, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        seen.append(list(previous_output))
        return [], "And what colour is it?", round_idx == 2, previous_output, previous_round_info

    picture = lambda _: [Image.open(photo).convert("RGB")]  # noqa: E731
    model = model_of(bundle, {}, keep=9)
    (rounds,) = model.generate_until_multi_round([asked(QUESTION, SETTINGS, picture, next_round, 0, "task", "test")])
    assert len(rounds) == 2 and seen == [rounds[:1], rounds]


@pytest.mark.parametrize(
    ("settings", "generation", "said"),
    [
        ({"kepe": 0.5}, SETTINGS, "model_args: .*kepe"),
        ({"keep": 0.5, "batch_size": 4}, SETTINGS, "batch_size must be 1"),
        ({"keep": 0.5}, SETTINGS | {"num_beams": 5}, "num_beams must be 1"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(
    bundle: Path, photo: Path, settings: dict[str, Any], generation: dict[str, Any], said: str
) -> None:
    document = {"kind": "image", "url": Image.open(photo).convert("RGB")}
    with pytest.raises(RedipruneError, match=said):
        model_of(bundle, document, **settings).generate_until([asked("", chat, generation, 0, "task", "test")])


def test_the_drawn_task_is_read_by_lmms_evals_own_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.tasks import TaskManager, get_task_dict

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    write_task(tmp_path / "drawn", images=1, clips=1)
    task = get_task_dict([TASK], TaskManager(include_path=str(tmp_path / "drawn"), model_name="rediprune"))[TASK]
    documents = list(task.test_docs())
    assert {bool(document["video"]) for document in documents} == {True, False}
    assert task.process_results(documents[0], [f" {documents[0]['answer'].upper()}."]) == {"correct": 1.0}
    assert np.isclose(task.process_results(documents[0], ["something else"])["correct"], 0.0)
