"""When an answer counts as correct, by the rule that a dataset names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.calibration.evaluation.answer_matching import MATCH_RULES, exact_match, option_match
from rediprune.calibration.tasks.drawn_task import samples


def test_exact_is_word_for_word_but_for_case_space_and_a_full_stop() -> None:
    assert exact_match(" Purple cross.", "purple cross") and not exact_match("purple", "purple cross")
    assert exact_match("YES", "yes.") and exact_match("3 . ", "3")
    assert not exact_match("a purple cross", "purple cross") and not exact_match("purple  cross", "purple cross")
    assert not exact_match("purple cross!", "purple cross")


LETTERS = ["B", "b", " B ", "B.", "(B)", "(b) a red ball", "B) a red ball", "B: a ball", "B, I think", "B. A ball."]
SENTENCES = ["The answer is B", "The answer is (B).", "the answer is B: a ball", "Answer: B", "answer B."]


@pytest.mark.parametrize("answer", [*LETTERS, *SENTENCES])
def test_an_option_is_chosen_by_its_letter(answer: str) -> None:
    assert option_match(answer, "B") and option_match(answer, "b")
    assert not option_match(answer, "A")


@pytest.mark.parametrize(
    "answer", ["", "a red ball", "A ball", "Be careful", "ball B", "I choose B", "Bob: no", "AB", "1", "not B", "[B]"]
)
def test_an_answer_in_words_names_no_option(answer: str) -> None:
    assert not any(option_match(answer, letter) for letter in "ABC")


@given(st.sampled_from(list(MATCH_RULES)), st.text(max_size=20), st.sampled_from("ABCDE"))
def test_any_answer_is_judged(rule: str, answer: str, expected: str) -> None:
    assert MATCH_RULES[rule](answer, expected) in (True, False)


def test_the_built_in_task_is_judged_word_for_word() -> None:
    """Its answers, some of them single letters, are told apart: each matches itself and no other."""
    answers = {sample.answer for sample in samples("test", 0, 30, 10)}
    assert {answer for answer in answers if len(answer) == 1 and answer.isalpha()}
    for answer in answers:
        assert [other for other in answers if exact_match(answer.upper() + ".", other)] == [answer]
