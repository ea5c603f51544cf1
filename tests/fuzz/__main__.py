"""Mutated inputs, each of which must end with exit code 0 or 2: `python -m tests.fuzz --seed 1 --count 1000`.

An input is made by its number and the seed alone: `--only 17` makes it again. A worker process takes one after another;
it is watched, and an input that takes too long, too much memory or the process's life is a failure like a code of 3.
What failed is copied below build/fuzz.
"""

import argparse
import json
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .inputs import KINDS, Subjects, exit_code

BUILD = Path("build/fuzz")
SECONDS, BYTES = 30.0, 2_000_000_000


def main() -> int:
    """Returns 0 where every input ended well, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Mutated inputs end with exit code 0 or 2."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", type=int, help="the one input of this number")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of: " + ", ".join(KINDS))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    if asked.only is not None:
        asked.start, asked.count = asked.only, asked.only + 1
    checkpoint, bundle = _subjects()
    if asked.worker:
        _work(asked.seed, asked.start, asked.count, kinds, checkpoint, bundle)
        return 0
    return _watch(asked.seed, asked.start, asked.count, asked.kinds)


def run_one(seed: int, number: int, kinds: list[str], checkpoint: Path, bundle: Path, scratch: Path) -> tuple[int, str]:
    """Make and try the input of a number; it is left in `scratch`."""
    rng = random.Random(f"{seed} {number}")
    return exit_code(kinds[number % len(kinds)], rng, _shared(checkpoint, bundle, scratch))


_SUBJECTS: dict[tuple[Path, Path], Subjects] = {}


def _shared(checkpoint: Path, bundle: Path, scratch: Path) -> Subjects:
    subjects = _SUBJECTS.setdefault((checkpoint, bundle), Subjects(checkpoint, bundle, scratch))
    subjects.scratch = scratch
    return subjects


def _subjects() -> tuple[Path, Path]:
    """A tiny checkpoint and its bundle, made once."""
    from rediprune.export.checkpoint.maker import make_checkpoint
    from rediprune.export.checkpoint.reader import Checkpoint
    from rediprune.export.exporter import export_bundle

    checkpoint, bundle = BUILD / "checkpoint", BUILD / "bundle"
    if not (checkpoint / "config.json").is_file():
        make_checkpoint(checkpoint, "video_llava")
    if not (bundle / "manifest.json").is_file():
        export_bundle(Checkpoint.open(str(checkpoint)), bundle, copy=True)
    return checkpoint, bundle


def _work(seed: int, start: int, count: int, kinds: list[str], checkpoint: Path, bundle: Path) -> None:
    """Try inputs one after another, and print a line of JSON for each."""
    from rediprune.runtime import __main__ as entry

    entry.leave_at_once = lambda code: None  # the process goes on
    lines = sys.stdout
    sys.stdout = sys.stderr
    for number in range(start, count):
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            print(json.dumps({"number": number, "folder": folder}), file=lines, flush=True)
            code, said = run_one(seed, number, kinds, checkpoint, bundle, Path(folder))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            done = {"number": number, "code": code, "said": said[:300], "peak": peak}
            if code not in (0, 2) or peak > BYTES:
                shutil.copytree(folder, _failed(seed, number), dirs_exist_ok=True)
            print(json.dumps(done), file=lines, flush=True)
            if peak > BYTES:
                return


def _failed(seed: int, number: int) -> Path:
    return BUILD / f"failed-{seed}-{number}"


def _watch(seed: int, start: int, count: int, kinds: str) -> int:
    """Run workers over all inputs, a new one where one ends early."""
    codes: Counter[str] = Counter()
    failures: list[str] = []
    began, number = time.monotonic(), start
    while number < count:
        words = ["--worker", "--seed", seed, "--start", number, "--count", count, "--kinds", kinds]
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        number = _follow(worker, seed, number, kinds.split(","), codes, failures)
    print(f"{count - start} inputs in {time.monotonic() - began:.0f} s: {dict(sorted(codes.items()))}")
    print(*failures, sep="\n", end="\n" if failures else "")
    return 1 if failures else 0


def _follow(
    worker: subprocess.Popen[str], seed: int, number: int, kinds: list[str], codes: Counter[str], failures: list[str]
) -> int:
    """Read a worker's lines until it ends or must be ended; returns the number of the next input."""
    assert worker.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(worker.stdout, selectors.EVENT_READ)
    folder: str | None = None
    began = time.monotonic()

    def fail(what: str) -> None:
        failures.append(f"{kinds[number % len(kinds)]} {number}: {what}")
        codes["failed"] += 1

    while True:
        ready = selector.select(timeout=0.5)
        line = worker.stdout.readline() if ready else None
        if line:
            told = json.loads(line)
            began = time.monotonic()
            if "folder" in told:
                number, folder = told["number"], told["folder"]
                continue
            folder = None
            if told["code"] not in (0, 2):
                fail(f"exit {told['code']}: {told['said']}")
            elif told["peak"] > BYTES:
                fail(f"{told['peak'] / 1e9:.1f} GB")
            else:
                codes[f"{kinds[number % len(kinds)]} {told['code']}"] += 1
            number += 1
        elif line == "":
            if worker.wait() != 0 or folder is not None:
                fail(f"the process ended with {worker.returncode}")
                number += 1
            return number
        else:
            # The start of a worker takes as long as it takes: libraries are imported, and the bundle may be made.
            late = folder is not None and time.monotonic() - began > SECONDS
            large = _resident(worker.pid) > BYTES
            if late or large:
                fail(f"longer than {SECONDS:.0f} s" if late else "more than 2 GB")
                if folder is not None:
                    shutil.copytree(folder, _failed(seed, number), dirs_exist_ok=True)
                    shutil.rmtree(folder, ignore_errors=True)
                worker.kill()
                worker.wait()
                return number + 1


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
