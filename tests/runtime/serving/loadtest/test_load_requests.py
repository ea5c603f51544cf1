"""What a load test asks."""

import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.serving.loadtest.load_requests import LoadTest, picture_uri


def test_every_keep_ratio_gets_the_same_requests() -> None:
    asked = LoadTest("m", requests=40)
    one, other = asked.bodies(1.0, 40, 3), asked.bodies(0.15, 40, 3)
    assert [body | {"keep": 0} for body in one] == [body | {"keep": 0} for body in other]
    assert {body["keep"] for body in other} == {0.15}
    again = LoadTest("m", requests=40).bodies(1.0, 40, 3)
    assert again == one and LoadTest("m", requests=40, seed=1).bodies(1.0, 40, 3) != one


def test_the_mix() -> None:
    def pictures(asked: LoadTest) -> list[str]:
        contents = [body["messages"][0]["content"] for body in asked.bodies(1.0, 200, 1)]
        return [part["image_url"]["url"] for content in contents for part in content if part["type"] == "image_url"]

    assert 130 < len(pictures(LoadTest("m"))) < 170 and len(set(pictures(LoadTest("m")))) == 4
    assert pictures(LoadTest("m", text_share=1.0)) == []
    fresh = pictures(LoadTest("m", text_share=0.0, fresh=True))
    assert len(set(fresh)) == len(fresh) == 200
    assert len(LoadTest("m", pictures=3).warming(0.5)) == 3 and not LoadTest("m", fresh=True).warming(0.5)


def test_questions_differ_from_step_to_step() -> None:
    asked = LoadTest("m")
    texts = [b["messages"][0]["content"][-1]["text"] for step in (1, 2) for b in asked.bodies(1.0, 64, step)]
    assert len(set(texts)) == len(texts)


def test_there_are_at_least_two_requests_a_client() -> None:
    assert [LoadTest("m", requests=20).count(clients) for clients in (1, 8, 32)] == [20, 20, 64]


def test_pictures_are_drawn_from_their_seed() -> None:
    assert picture_uri("a") == picture_uri("a") != picture_uri("b")


@pytest.mark.parametrize("setting", [{"clients": [0]}, {"clients": []}, {"text_share": 1.1}, {"requests": 0}])
def test_what_is_no_load_test(setting: dict) -> None:
    with pytest.raises(RedipruneError):
        LoadTest("m", **setting)
