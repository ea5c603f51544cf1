"""Recipes are read part by part; what they name has to be there."""

import pytest
from rediprune.calibration.quantize.precision_recipes import RECIPES, UNCHANGED, limits_of, parse_recipe
from rediprune.calibration.quantize.schemes import SCHEMES
from rediprune.runtime.errors import RedipruneError

STAGES = ["vision", "select", "select_clip", "project", "embed", "language"]


def test_a_shorthand_names_every_stage_and_later_parts_win() -> None:
    assert parse_recipe("int4", STAGES) == {"vision": "int8", "project": "int8", "language": "int4"}
    assert parse_recipe("int8, language=fp8", STAGES) == {"vision": "int8", "project": "int8", "language": "fp8"}
    assert parse_recipe("language=fp8,int8", STAGES)["language"] == "int8"
    assert parse_recipe("fp16", STAGES)["embed"] == "fp16"
    assert list(parse_recipe("language=int8,vision=int8", STAGES)) == ["vision", "language"]  # as the bundle has them


@pytest.mark.parametrize("word", [UNCHANGED, "keep"])  # the latter by earlier versions
def test_a_stage_stays_as_it_is_by_either_word(word: str) -> None:
    assert parse_recipe(f"int8,vision={word}", STAGES) == {"project": "int8", "language": "int8"}
    with pytest.raises(RedipruneError, match="changes no stage"):
        parse_recipe(f"vision={word}", STAGES)


def test_a_tower_for_videos_follows_the_one_for_images() -> None:
    stages = ["vision", "vision_video", "select", "select_clip", "project", "embed", "language"]
    assert parse_recipe("int8", stages)["vision_video"] == "int8"
    assert "vision_video" not in parse_recipe("int8,vision_video=keep", stages)
    assert parse_recipe("int8,language=int4", stages)["language"] == "int4"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int9", "recipe 'int9' is not known; choose one of int8, int8-dynamic"),
        ("", "recipe '' is not known"),
        ("vision=int9", f"scheme 'int9' is not known; choose one of int8.*{UNCHANGED}"),
        ("tower=int8", "stage 'tower' is not one of this bundle's: vision, select"),
        ("select=int8", "'select' always computes in fp32"),
        ("select_clip=int8", "'select_clip' always computes in fp32"),
        ("embed=int8", "'embed' only looks up a table"),
        ("vision=", "scheme '' is not known"),
    ],
)
def test_bad_recipes_are_refused(text: str, says: str) -> None:
    with pytest.raises(RedipruneError, match=says):
        parse_recipe(text, STAGES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_limits_say_what_every_scheme_of_a_recipe_says(name: str) -> None:
    recipe = parse_recipe(name, STAGES)
    limits = limits_of(recipe)
    for scheme in (SCHEMES[name] for name in recipe.values()):
        assert {limit.backend for limit in limits} >= set(scheme.refused)
        if scheme.min_compute_capability is not None:
            assert ("tensorrt-rtx", scheme.min_compute_capability) in {(one.backend, one.below) for one in limits}
    assert all(limit.says for limit in limits)
    if name == "int8":
        assert limits == []
