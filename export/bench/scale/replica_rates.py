"""Requests a second of one and of two replicas on Ray, each with one thread, and the hit rate of their feature caches beside
a single process's.

    python -m rediprune.export.bench.scale.replica_rates engines/demo-fp32 --requests 120 --tokens 32

A request's picture comes again as in a trace: the n-th most asked as often as 1/n says. With one thread a stage a replica
still encodes one request while it decodes others; `--confined` also measures replicas that have one core each and no other,
which are single-threaded in every sense (Linux; OpenVINO's threads leave the core that they are given, so on `ort`).
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

from ..soak_server import served
from .asked import ask_all, bodies, hit_rate


def confine_replicas() -> int:
    """Give each replica of this machine a core of its own; how many there are."""
    titles = {path.parent: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    replicas = sorted(
        process for process, title in titles.items() if title.startswith(b"ray::ServeReplica:") and b":Engine" in title
    )
    for process, core in zip(replicas, sorted(os.sched_getaffinity(0)), strict=False):
        for thread in (process / "task").iterdir():  # those that start later inherit it
            os.sched_setaffinity(int(thread.name), {core})
    return len(replicas)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--keep", type=float, default=0.15)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--backend", default="ort")
    parser.add_argument(
        "--split", action="store_true", help="measure one replica that encodes and one that decodes too"
    )
    confined = parser.add_mutually_exclusive_group()
    confined.add_argument("--confined", action="store_true", help="measure replicas with one core each too")
    confined.add_argument("--only-confined", action="store_true", help="measure those in place of the first three")
    given = parser.parse_args()
    asked = bodies("m", given.requests, given.pictures, given.tokens, given.keep)
    ways: dict[str, list[str]] = {}
    if not given.only_confined:
        ways = {
            "single process": ["--threads", "1"],
            "one replica": ["--ray", "--replicas", "1", "--threads", "1", "--port", "8941"],
            "two replicas": ["--ray", "--replicas", "2", "--threads", "1", "--port", "8942"],
        }
    if given.split:
        ways["split"] = ["--ray", "--replicas", "1", "--split", "1", "--threads", "1", "--port", "8943"]
    if given.confined or given.only_confined:
        ways["one confined"] = ["--ray", "--replicas", "1", "--threads", "1", "--port", "8944"]
        ways["two confined"] = ["--ray", "--replicas", "2", "--threads", "1", "--port", "8945"]
    found: dict[str, dict[str, float]] = {}
    answers: dict[str, list[str]] = {}
    for name, options in ways.items():
        with served({"m": given.bundle}, "1GB", "--backend", given.backend, *options) as (url, _):
            asyncio.run(ask_all(url, bodies("m", 4, 4, 2, given.keep, seed=1), 4))  # every replica has answered
            time.sleep(3)  # and reported so
            if name.endswith("confined") and confine_replicas() != (1 if name.startswith("one") else 2):
                raise SystemExit("another Ray runs on this machine, or a replica is missing")
            seconds, answers[name] = asyncio.run(ask_all(url, asked, given.clients))
            time.sleep(3)
            found[name] = {"requests_per_second": given.requests / seconds, "hit_rate": hit_rate(url)}
        print(name, found[name], flush=True)
    rates = {name: figures["requests_per_second"] for name, figures in found.items()}
    pairs = {"two_over_one": ("two replicas", "one replica"), "two_over_one_confined": ("two confined", "one confined")}
    ratios = {name: rates[two] / rates[one] for name, (two, one) in pairs.items() if one in rates}
    told = {name: {key: round(value, 4) for key, value in figures.items()} for name, figures in found.items()}
    equal = all(texts == next(iter(answers.values())) for texts in answers.values())
    print(
        json.dumps(
            told | {name: round(ratio, 3) for name, ratio in ratios.items()} | {"equal": equal},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
