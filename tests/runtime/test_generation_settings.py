"""Every setting of transformers' generation config is obeyed, refused or left out, and a page says which."""

import re
from pathlib import Path
from typing import Any

import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.generation_settings import LEFT_OUT, OBEYED, REFUSED, check_forms
from rediprune.runtime.sampling import Sampling, Stopping
from transformers import GenerationConfig

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
NAMES = {*OBEYED, *REFUSED, *(name for names in LEFT_OUT.values() for name in names)}


def test_no_setting_of_transformers_is_forgotten() -> None:
    settings = {name for name in GenerationConfig().to_dict() if not name.startswith("_")} - {"transformers_version"}
    assert settings <= NAMES
    assert len(NAMES) == len(OBEYED) + len(REFUSED) + sum(map(len, LEFT_OUT.values()))  # each in one list


def table(heading: str) -> dict[str, str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, flags=re.M))


def test_the_page_says_what_the_code_does() -> None:
    assert table("Obeyed").keys() == OBEYED.keys()
    assert table("Left out") == {name: why for why, names in LEFT_OUT.items() for name in names}
    shown = {name: {"null": (), "false": (False,)}.get(off) or off for name, off in table("Refused").items()}
    expected = {name: tuple(off)[:1] for name, off in REFUSED.items()}
    assert {name: off if isinstance(off, tuple) else (int(off),) if off != "null" else () for name, off in shown.items()} == expected  # fmt: skip


GOOD: dict[str, Any] = {
    "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9,
    "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4, "repetition_penalty": 1.1, "sequence_bias": [[[3, 4], 1.5]],
    "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [6, 7]], "min_length": 4, "min_new_tokens": 2,
    "forced_bos_token_id": 1, "forced_eos_token_id": [2, 3], "exponential_decay_length_penalty": [5, 1.1],
    "suppress_tokens": [4, -1], "begin_suppress_tokens": [], "eos_token_id": [2], "stop_strings": ["###"],
}  # fmt: skip


def test_good_forms_pass() -> None:
    assert GOOD.keys() == OBEYED.keys()
    assert check_forms(GOOD, "x") is GOOD
    check_forms(dict.fromkeys(OBEYED), "x")  # null leaves a setting open
    Sampling.from_config(GOOD, Stopping(GOOD, None).ids)


BAD: list[Any] = ["text", [[]], {"a": 1}, [["a"]], float("nan"), -2.5]


@pytest.mark.parametrize("name", OBEYED)
@pytest.mark.parametrize("value", BAD)
def test_other_forms_are_refused_by_name(name: str, value: Any) -> None:
    if name == "stop_strings" and value == "text":
        return
    with pytest.raises(RedipruneError, match=f"^{name} in g.json must be ") as error:
        check_forms({name: value}, "g.json")
    assert "\n" not in str(error.value)
