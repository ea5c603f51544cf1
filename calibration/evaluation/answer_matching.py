"""When an answer counts as correct.

A dataset says for each question which rule applies (`"match"` in its line); without it the rule is "exact".
"""

import re
from collections.abc import Callable

_OPTION = re.compile(r"(?:^|\banswer(?: is)?:?)\s*\(?([a-z])(?:[).:,]|\s*$)")


def normalised(answer: str) -> str:
    """An answer without outer space, closing full stops and upper case."""
    return answer.strip().rstrip(".").strip().casefold()


def exact_match(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one word for word, once both are `normalised`."""
    return normalised(answer) == normalised(expected)


def option_match(answer: str, expected: str) -> bool:
    """Whether an answer chooses the option with the expected letter.

    It does where the letter stands alone, or first with a bracket or punctuation behind it, or so behind "answer is" or
    "answer:": "B", "(b)", "B. a red ball", "The answer is B." An answer in words alone names no option.
    """
    option = _OPTION.search(normalised(answer))
    return option is not None and option[1] == normalised(expected)


# Name of a rule, as a dataset gives it → whether an answer matches the expected one.
MATCH_RULES: dict[str, Callable[[str, str], bool]] = {"exact": exact_match, "option": option_match}
