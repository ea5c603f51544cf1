"""Datasets: what a line has to hold, and whose questions they are."""

import json
from pathlib import Path

import pytest
from rediprune.calibration.evaluation.question_dataset import check_disjoint, read_questions
from rediprune.calibration.tasks.media_folder import write_set
from rediprune.runtime.errors import RedipruneError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), "test", seed=5, images=2, clips=1)


def test_bad_datasets(tmp_path: Path, photo: Path) -> None:
    path = tmp_path / "questions.jsonl"
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "text.mp4").write_text("this is no video")
    good = {"image": str(photo), "question": "What?", "answer": "a suit"}
    for line, word in (
        ("{", "is no JSON"),
        ("[1]", "no JSON object"),
        (json.dumps(good | {"image": ""}), "needs an image or a video"),
        (json.dumps(good | {"video": "b.mp4"}), "both an image and a video"),
        (json.dumps(good | {"image": "gone.png"}), "'gone.png', which is not there"),
        (json.dumps(good | {"image": "text.png"}), "cannot be asked: .*text.png"),
        (json.dumps(good | {"image": "", "video": "text.mp4"}), "cannot be asked: .*text.mp4"),
        (json.dumps(good | {"image": 7}), "path of its image as a text"),
        (json.dumps(good | {"question": " "}), "has no question"),
        (json.dumps(good | {"answer": ""}), "has no answer"),
        (json.dumps(good | {"match": "roughly"}), "matches answers by 'roughly', which is none of: exact, option"),
        (json.dumps(good | {"match": "option"}), "needs the letter of an option as its answer, not 'a suit'"),
        (json.dumps(good | {"match": "option", "answer": "7"}), "needs the letter of an option"),
    ):
        path.write_text(json.dumps(good) + "\n" + line + "\n")
        with pytest.raises(RedipruneError, match=word) as error:
            read_questions(path)
        assert "line 2" in str(error.value)
    path.write_text("\n")
    with pytest.raises(RedipruneError, match="empty"):
        read_questions(path)
    with pytest.raises(RedipruneError, match="no dataset"):
        read_questions(tmp_path / "gone.jsonl")


def test_questions_of_the_training_set_are_refused(dataset: Path, tmp_path: Path) -> None:
    test = read_questions(dataset)
    other = read_questions(write_set(tmp_path / "other", "train", seed=5, images=3, clips=0))
    check_disjoint(test, other)
    with pytest.raises(RedipruneError, match=f"1 of {len(test)} questions"):
        check_disjoint(test, [*other, test[0]])


def test_a_line_is_read_with_what_it_leaves_out(tmp_path: Path, photo: Path) -> None:
    lines = [
        {"image": str(photo), "question": "Who?", "answer": "An astronaut."},
        {"image": str(photo), "question": "A or B?", "answer": "b", "kind": "choice", "match": "option"},
        {"image": str(photo), "question": "How many?", "answer": 1},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    plain, choice, number = read_questions(path)
    assert (plain.kind, plain.match, plain.video) == ("all", "exact", False)
    assert plain.is_correct("an astronaut") and not plain.is_correct("an astronaut in a suit")
    assert choice.kind == "choice" and choice.is_correct("(B) a suit") and not choice.is_correct("a suit, B")
    assert number.answer == "1"
