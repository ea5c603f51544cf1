"""Requests a second of one and of two replicas on Ray, each with one thread, and the hit rate of their feature caches beside
a single process's.

    python -m rediprune.export.bench.scale.replica_rates engines/demo-fp32 --requests 120 --tokens 32

A request's picture comes again as in a trace: the n-th most asked as often as 1/n says.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

from ..soak_server import served
from .asked import ask_all, bodies, hit_rate


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
    given = parser.parse_args()
    asked = bodies("m", given.requests, given.pictures, given.tokens, given.keep)
    ways = {
        "single process": ["--threads", "1"],
        "one replica": ["--ray", "--replicas", "1", "--threads", "1", "--port", "8941"],
        "two replicas": ["--ray", "--replicas", "2", "--threads", "1", "--port", "8942"],
    }
    if given.split:
        ways["split"] = ["--ray", "--replicas", "1", "--split", "1", "--threads", "1", "--port", "8943"]
    found: dict[str, dict[str, float]] = {}
    answers: dict[str, list[str]] = {}
    for name, options in ways.items():
        with served({"m": given.bundle}, "1GB", "--backend", given.backend, *options) as (url, _):
            asyncio.run(ask_all(url, bodies("m", 4, 4, 2, given.keep, seed=1), 4))  # every replica has answered
            time.sleep(3)  # and reported so
            seconds, answers[name] = asyncio.run(ask_all(url, asked, given.clients))
            time.sleep(3)
            found[name] = {"requests_per_second": given.requests / seconds, "hit_rate": hit_rate(url)}
        print(name, found[name], flush=True)
    one = found["one replica"]["requests_per_second"]
    told = {name: {key: round(value, 4) for key, value in figures.items()} for name, figures in found.items()}
    equal = all(texts == answers["single process"] for texts in answers.values())
    print(
        json.dumps(
            told | {"two_over_one": round(found["two replicas"]["requests_per_second"] / one, 3), "equal": equal},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
