"""Times to the first token that are asked for, and those that come.

    python -m rediprune.export.bench.first_token_targets engines/real-int8 --image photo.jpg --targets 300ms,500ms,1s

Each target is asked `--runs` times, in turns with the others, and no features are kept between requests: what is shown is
the median with the fastest and the slowest, and how many came in time. The same pictures with all of their tokens and with
one token of each frame tell what a target can be.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.options import SelectOptions
from ...runtime.pipeline import Pipeline

_ALL, _LEAST = "all tokens", "one token a frame"


@dataclass(frozen=True)
class Reached:
    """What came of one target.

    Attributes:
        target: seconds; None where none was asked for.
        kept: visual tokens of each request.
        seconds: to the first token of each.
        said: requests whose answer warned that the time cannot be met.
    """

    target: float | None
    kept: list[int]
    seconds: list[float]
    said: int

    @property
    def in_time(self) -> int:
        """Requests whose first token came within the target."""
        return sum(self.target is not None and seconds <= self.target for seconds in self.seconds)


def ask_targets(
    pipeline: Pipeline, question: str, media: dict[str, Any], targets: Sequence[float], runs: int
) -> dict[str, Reached]:
    """Ask for each target in turns.

    Args:
        pipeline: without a feature cache; its first requests are not counted.
        question: the prompt.
        media: `images`, or `videos` and `frames`, as `Pipeline.generate` takes them.
        targets: seconds.
        runs: requests of each.
    """
    asked = {_ALL: SelectOptions(keep=1.0), _LEAST: SelectOptions(keep=1)}
    asked |= {f"{target * 1e3:.0f} ms": SelectOptions(first_token=target) for target in targets}
    goals = dict(zip(asked, (None, None, *targets), strict=True))
    answers: dict[str, list[Any]] = {name: [] for name in asked}
    for turn in range(runs + 1):
        for name, selection in asked.items():
            answer = pipeline.generate(question, selection=selection, max_new_tokens=1, temperature=0.0, **media)
            if turn:  # before, latencies are measured and memory is got
                answers[name].append(answer)
    return {
        name: Reached(
            goals[name],
            [answer.kept_tokens for answer in told],
            [answer.timings["time_to_first_token"] for answer in told],
            sum(any("first token cannot come" in line for line in answer.warnings) for answer in told),
        )
        for name, told in answers.items()
    }


def table(found: dict[str, Reached]) -> str:
    """A markdown table of what came."""
    lines = ["| asked | kept tokens | first token, median (fastest – slowest) | in time |", "|---|---|---|---|"]
    for name, one in found.items():
        least, most = min(one.kept), max(one.kept)
        kept = str(least) if least == most else f"{least} – {most}"
        middle, fastest, slowest = (f(one.seconds) * 1e3 for f in (statistics.median, min, max))
        in_time = "" if one.target is None else f"{one.in_time} of {len(one.seconds)}"
        in_time += f", {one.said} said that it cannot" if one.said else ""
        lines.append(f"| {name} | {kept} | {middle:.0f} ms ({fastest:.0f} – {slowest:.0f}) | {in_time} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, action="append", default=[])
    parser.add_argument("--video", type=Path, action="append", default=[])
    parser.add_argument("--frames", type=int)
    parser.add_argument("--prompt", default="What is in this picture?")
    parser.add_argument("--targets", default="300ms,500ms,1s", help="times, by commas")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    times = [SelectOptions(first_token=part).first_token for part in given.targets.split(",")]
    pipeline = Pipeline.load(given.bundle, given.backend, threads=given.threads, cache_bytes=0)
    media = {"images": [str(path) for path in given.image], "videos": [str(path) for path in given.video]}
    found = ask_targets(
        pipeline, given.prompt, media | {"frames": given.frames}, [float(t) for t in times if t], given.runs
    )
    print(table(found))


if __name__ == "__main__":
    main()
