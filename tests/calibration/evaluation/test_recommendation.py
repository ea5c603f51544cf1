"""Which bundle a report recommends."""

from rediprune.calibration.evaluation.recommendation import recommend


def row(name: str, seconds: float, size: int, right: int, same: float = 1.0) -> dict:
    answers = {"change": (right - 90) / 100, "same_answers": same, "right": right}
    times = {"0.15": {"end_to_end": seconds, "time_to_first_token": seconds / 2}}
    return {"name": name, "disk_bytes": size, "times": times, "answers": {"1": answers, "0.15": answers}}


def test_the_recommendation_takes_the_fastest_that_loses_little() -> None:
    source, good, fast = row("fp32", 8, 100, 90), row("int8", 4, 50, 90), row("int4", 2, 25, 88)
    assert recommend({"bundles": [source, good, fast]}, 1.0).startswith("Take int8: it loses nothing, has 0.50 of")
    assert recommend({"bundles": [source, good, fast]}, 3.0).startswith("Take int4: it loses 2.0 points at most")
    assert recommend({"bundles": [source, fast]}, 1.0).startswith("Stay with fp32: every calibrated bundle loses")
    slow = row("int8", 10, 50, 90)
    assert "for speed" in recommend({"bundles": [source, slow]}, 1.0)
    for each in (source, good, fast):
        each["times"] = {}
    assert recommend({"bundles": [source, good, fast]}, 3.0).startswith("Take int4")  # the smallest
    blind = [row("fp32", 8, 100, 0), row("int8", 4, 50, 0, same=0.98)]
    assert "2.0 points of agreement" in recommend({"bundles": blind}, 3.0)
