"""Settings of a request: the same as keywords and as objects, and checked in one place."""

from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest
from rediprune.runtime import GenerateOptions, RedipruneError, SelectOptions
from rediprune.runtime.bundle import KeepDefaults
from rediprune.runtime.options import AnswerKeywords, Selection, SelectKeywords, merge_keywords


def test_keywords_are_the_fields_of_the_objects() -> None:
    """Written twice, so that an editor and a type checker see them; they must not drift apart."""
    select = get_type_hints(SelectOptions)
    assert get_type_hints(SelectKeywords) == select
    assert get_type_hints(AnswerKeywords) == select | get_type_hints(GenerateOptions)


def test_keywords_override_the_objects() -> None:
    selection, generation = merge_keywords(
        SelectOptions(keep=0.5, alpha=0.2), GenerateOptions(seed=3), {"keep": 7, "max_new_tokens": 5, "frames": 2}
    )
    assert selection == SelectOptions(keep=7, alpha=0.2, frames=2)
    assert generation == GenerateOptions(seed=3, max_new_tokens=5)
    assert merge_keywords(None, None, {}) == (SelectOptions(), GenerateOptions())
    with pytest.raises(TypeError, match="kepe"):
        merge_keywords(None, None, {"kepe": 0.5})


def test_options_cannot_be_changed() -> None:
    for options in (SelectOptions(), GenerateOptions()):
        for field in fields(options):
            with pytest.raises(AttributeError):
                setattr(options, field.name, 1)


def test_what_is_left_open_is_the_bundles() -> None:
    defaults = KeepDefaults(keep=0.3, alpha=0.7, tau=0.1)
    assert SelectOptions().resolved(defaults, None) == Selection(8, 0.3, 0.7, 0.1, None, False, "compact")
    assert SelectOptions().resolved(defaults, 3).frames == 3
    asked = SelectOptions(
        frames=2, keep=5, alpha=0.0, tau=0.0, frame_tolerance=0.0, prune_tiles=True, positions="original", max_pixels=9
    )
    assert asked.resolved(defaults, 3) == Selection(2, 5, 0.0, 0.0, 0.0, True, "original", None, 9)
    assert SelectOptions().resolved(KeepDefaults(positions="original"), 3).positions == "original"


def test_one_stop_string_need_not_be_in_a_list() -> None:
    assert GenerateOptions(stop="###").stop == ("###",)
    assert GenerateOptions(stop=["a", "b"]).stop == ("a", "b")


GOOD: list[dict[str, Any]] = [
    {"keep": 1.0},
    {"keep": 576},
    {"keep": np.float32(0.5)},
    {"keep": np.int64(3)},
    {"frames": np.int64(3)},
    {"frame_tolerance": 0},
    {"alpha": 0, "tau": -1.0},
    {"positions": "compact"},
    {"positions": "original"},
    {"min_pixels": 1, "max_pixels": np.int64(9)},
    {"scope": "clip", "min_per_frame": 2},
    {"keep": "auto", "min_per_frame": 2},
    {"first_token": "300ms", "keep": 0.5},
    {"temperature": 0},
    {"top_k": 0, "top_p": 1.0, "seed": 0},
    {"repetition_penalty": np.float64(1.1)},
    {"max_new_tokens": np.int64(3)},
]


@pytest.mark.parametrize("keywords", GOOD, ids=str)
def test_good_settings(keywords: dict[str, Any]) -> None:
    merge_keywords(None, None, keywords)


BAD = [
    ("keep", 0.0),
    ("keep", -0.5),
    ("keep", 1.5),
    ("keep", float("nan")),
    ("keep", 0),
    ("keep", -3),
    ("keep", True),
    ("keep", "half"),
    ("alpha", float("inf")),
    ("alpha", -1.0),
    ("alpha", "much"),
    ("tau", float("nan")),
    ("frames", 0),
    ("frames", 2.5),
    ("frames", True),
    ("frame_tolerance", -1.0),
    ("frame_tolerance", float("nan")),
    ("frame_tolerance", "some"),
    ("positions", "absolute"),
    ("positions", 1),
    ("min_pixels", 0),
    ("max_pixels", 1.5),
    ("max_pixels", "many"),
    ("max_new_tokens", 0),
    ("max_new_tokens", 2.5),
    ("max_new_tokens", None),
    ("max_new_tokens", "ten"),
    ("temperature", -1.0),
    ("temperature", float("inf")),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_p", float("nan")),
    ("min_p", 1.1),
    ("min_p", -0.1),
    ("presence_penalty", 2.1),
    ("presence_penalty", float("nan")),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", "1"),
    ("repetition_penalty", 0),
    ("repetition_penalty", float("inf")),
    ("seed", -1),
    ("seed", 1.5),
    ("stop", [1]),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_bad_settings_are_refused_by_name_in_one_line(name: str, value: Any) -> None:
    owner = SelectOptions if name in {field.name for field in fields(SelectOptions)} else GenerateOptions
    with pytest.raises(RedipruneError, match=name) as caught:
        owner(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "seconds"), [("300ms", 0.3), ("1.5s", 1.5), (" 2 S ", 2.0), ("0.25", 0.25), (0.5, 0.5), (3, 3.0)]
)
def test_a_time_to_the_first_token(given: float | str, seconds: float) -> None:
    assert SelectOptions(first_token=given).first_token == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": "most"}, "keep must be a ratio, a number of tokens, or 'auto', not 'most'"),
        ({"scope": "video"}, "scope must be frame or clip, not video"),
        ({"min_per_frame": 0, "scope": "clip"}, "min_per_frame must be a whole number, at least 1, not 0"),
        ({"min_per_frame": 2}, "min_per_frame is for scope 'clip' and keep 'auto'"),
        ({"scope": "clip", "tau": 0.1}, "tau filters the tokens of one frame"),
        ({"keep": "auto", "tau": 0.1}, "tau filters the tokens of one frame"),
        ({"keep": "auto", "first_token": 1.0}, "both say how many tokens are kept"),
        ({"first_token": "soon"}, "first_token must be a time such as 300ms"),
        ({"first_token": 0}, "first_token must be a time"),
        ({"first_token": True}, "first_token must be a time"),
        ({"first_token": "nan"}, "first_token must be a time"),
    ],
    ids=str,
)
def test_settings_of_the_budget_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RedipruneError, match=said):
        SelectOptions(**settings)


def test_a_bundles_own_filter_contradicts_one_budget() -> None:
    with pytest.raises(RedipruneError, match="it must be 0"):
        SelectOptions(scope="clip").resolved(KeepDefaults(tau=0.2), None)
    assert SelectOptions(scope="clip", tau=0.0).resolved(KeepDefaults(tau=0.2), None).over_clip


def test_a_time_alone_lets_all_tokens_be_kept() -> None:
    assert SelectOptions(first_token=1.0).resolved(KeepDefaults(), None).keep == 1.0
    assert SelectOptions(first_token=1.0, keep=0.2).resolved(KeepDefaults(), None).keep == 0.2
