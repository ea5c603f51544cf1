"""`rediprune batch --ray` on a real Ray of this machine: equal answers, and no row lost or doubled whatever is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ...support.command_line import COMMAND, CommandLine
from ...support.ray_head import head
from .conftest import answers, row, text_of

pytestmark = [pytest.mark.process, pytest.mark.slow]

Requests = Callable[[list[Any]], Path]


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of("llava")


def start(bundle: Path, requests: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    options = ["-o", str(out), "--backend", "ort", "--max-batch", "2", *more]
    command = [*COMMAND, "batch", str(bundle), str(requests), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ray_options() -> list[str]:
    return ["--ray", "--workers", "2", "--worker-cpus", "0.5"]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def lines_in(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Ray's processes below the driver that answer rows."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [each for each in below if "RowWorker" in " ".join(each.cmdline())]


def names_of(processes: list[psutil.Process]) -> list[str]:
    """Those that run."""
    names = []
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                names.append(each.name())
    return names


@pytest.fixture
def rows() -> list[Any]:
    made: list[Any] = [row(number, max_tokens=24, ignore_eos=True) for number in range(200)]
    made[30] = "{broken"
    made[31] = row(29)
    made[32] = row(32, n=2)
    return made


def expected(bundle: Path, requests: Path, folder: Path, rediprune: CommandLine) -> list[Any]:
    out = folder / "alone.jsonl"
    rediprune("batch", bundle, requests, "-o", out, "--backend", "ort", "--max-batch", 2, code=1)
    return told(out)


def told(out: Path) -> list[Any]:
    return [(line["id"], line["custom_id"], line["error"] or text_of(line)) for line in answers(out)]


def test_a_worker_that_is_killed_costs_no_row(
    bundle: Path, requests_of: Requests, rows: list[Any], folder: Path, rediprune: CommandLine
) -> None:
    requests, out = requests_of(rows), folder / "answers.jsonl"
    process = start(bundle, requests, out, *ray_options())
    wait_for(lambda: lines_in(out) >= 20 and bool(workers_of(process)))
    workers_of(process)[0].send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1, error
    assert told(out) == expected(bundle, requests, folder, rediprune)


def test_a_worker_that_hangs_and_is_killed_later_costs_no_row(
    bundle: Path, requests_of: Requests, rows: list[Any], folder: Path, rediprune: CommandLine
) -> None:
    """As on a machine that hangs until it is taken from the cluster."""
    requests, out = requests_of(rows), folder / "answers.jsonl"
    process = start(bundle, requests, out, *ray_options())
    wait_for(lambda: lines_in(out) >= 10 and bool(workers_of(process)))
    hanging = workers_of(process)[0]
    hanging.send_signal(signal.SIGSTOP)
    time.sleep(3)
    hanging.send_signal(signal.SIGKILL)
    process.communicate(timeout=240)
    assert process.returncode == 1
    assert told(out) == expected(bundle, requests, folder, rediprune)


def test_a_driver_that_is_killed_goes_on(
    bundle: Path, requests_of: Requests, rows: list[Any], folder: Path, rediprune: CommandLine
) -> None:
    requests, out = requests_of(rows), folder / "answers.jsonl"
    process = start(bundle, requests, out, *ray_options())
    wait_for(lambda: lines_in(out) >= 40)
    below = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = out.read_bytes()
    # A cluster started by the driver ends with it; Ray's agents take minutes to notice, and are ended here.
    wait_for(lambda: all("Agent" in each for each in names_of(below)), 20)
    for each in below:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(below, timeout=20)
    process = start(bundle, requests, out, *ray_options())
    process.communicate(timeout=240)
    assert process.returncode == 1
    assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert told(out) == expected(bundle, requests, folder, rediprune)


def test_an_object_store_that_is_full_costs_no_row(
    bundle: Path, requests_of: Requests, folder: Path, rediprune: CommandLine
) -> None:
    """Rows of 200 MB and a store of 80 MB, on a cluster that another process started."""
    import base64

    import numpy as np
    from PIL import Image

    rows: list[Any] = []
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (1120, 1120, 3), np.uint8)
        Image.fromarray(noise).save(folder / "noise.png", compress_level=0)
        uri = "data:image/png;base64," + base64.b64encode((folder / "noise.png").read_bytes()).decode()
        parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What is it?"}]
        rows.append(row(number, messages=[{"role": "user", "content": parts}], max_tokens=4))
    requests, out = requests_of(rows), folder / "answers.jsonl"
    assert requests.stat().st_size > 180e6
    with head(80_000_000) as address:
        process = start(bundle, requests, out, *ray_options(), "--ray-address", address)
        _, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    alone = folder / "alone.jsonl"
    rediprune("batch", bundle, requests, "-o", alone, "--backend", "ort", "--max-batch", 2)
    assert told(out) == told(alone)


def test_too_many_workers_are_refused(
    bundle: Path, requests_of: Requests, folder: Path, rediprune_process: CommandLine
) -> None:
    options = ("-o", folder / "out.jsonl", "--ray", "--workers", 10_000)
    assert "the cluster has" in rediprune_process("batch", bundle, requests_of([row(0)]), *options, code=2).stderr
