"""Times to the first token, asked for and come."""

from collections.abc import Callable
from pathlib import Path

from rediprune.export.bench.first_token_targets import Reached, ask_targets, table
from rediprune.runtime import Pipeline


def test_a_generous_target_keeps_all_and_one_that_cannot_be_met_keeps_one(
    bundle_of: Callable[[str], Path], photo: Path
) -> None:
    pipeline = Pipeline.load(bundle_of("llava_qwen2"), "ort", cache_bytes=0)
    found = ask_targets(pipeline, "What is it?", {"images": [photo]}, [60.0, 1e-6], 2)
    every, least, generous, hopeless = found.values()
    assert list(found) == ["all tokens", "one token a frame", "60000 ms", "0 ms"]
    assert every.kept == generous.kept and len(set(every.kept)) == 1
    assert least.kept == hopeless.kept == [1, 1]
    assert (generous.in_time, generous.said, hopeless.in_time, hopeless.said) == (2, 0, 0, 2)


def test_the_table_shows_median_and_range() -> None:
    found = {
        "all tokens": Reached(None, [64, 64, 64], [0.2, 0.4, 0.3], 0),
        "300 ms": Reached(0.3, [20, 31, 25], [0.299, 0.31, 0.28], 1),
    }
    assert table(found).splitlines()[2:] == [
        "| all tokens | 64 | 300 ms (200 – 400) |  |",
        "| 300 ms | 20 – 31 | 299 ms (280 – 310) | 2 of 3, 1 said that it cannot |",
    ]
