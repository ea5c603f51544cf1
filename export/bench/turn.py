"""One turn of a contender, in a process of its own: start, a first answer, then every request so many times.

    python -m rediprune.export.bench.turn MODULE < JOB    MODULE has `load(**arguments)`, which returns `ask(request)`

A contender imports what it needs itself, so that its start-up is its own. The last line on stdout is one JSON document.
"""

import gc
import json
import sys
import time
from importlib import import_module


def take_turn(module: str, job: dict) -> dict:
    """Load and ask.

    Args:
        module: the contender's module.
        job: `arguments` of its `load`; `requests`, each a dict of question, images, videos, frames, keep, positions
            (that the prompt then takes) and new_tokens; `repeats` of each; `warm`, whether each is answered once before;
            `spawned`, when this process was started (`time.monotonic`).

    Returns:
        start_up: seconds from the start of the process to the end of the first answer; first: seconds of that answer;
        answers: per request, for each repeat its seconds by stage, `time_to_first_token` (not from a decoder alone),
        `decode_token`, `total`; peak_memory: bytes.
    """
    ask = import_module(module).load(**job["arguments"])
    first = ask(job["requests"][-1] | {"new_tokens": 1})
    start_up = time.monotonic() - job["spawned"]
    answers: list = [[] for _ in job["requests"]]
    for request in job["requests"] if job["warm"] else ():  # every shape once before it counts
        ask(request | {"new_tokens": min(2, request["new_tokens"])})
    for _ in range(job["repeats"]):
        for request, taken in zip(job["requests"], answers, strict=True):
            gc.collect()
            taken.append(ask(request))
    from ...runtime.memory import peak_memory  # last, so that a contender imports no more than its own

    return {"start_up": start_up, "first": first, "answers": answers, "peak_memory": peak_memory()}


if __name__ == "__main__":
    print(json.dumps(take_turn(sys.argv[1], json.load(sys.stdin))))
