"""`rediprune batch` on this machine: answers equal to the pipeline's, errors told, kills survived."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rediprune.runtime import Pipeline

from ...support.command_line import COMMAND, CommandLine
from .conftest import PICTURES, answers, row, text_of

Requests = Callable[[list[Any]], Path]


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of("llava")


def test_answers_are_those_of_the_pipeline_in_order(
    rediprune: CommandLine, bundle: Path, requests_of: Requests, folder: Path
) -> None:
    rows = [row(number) for number in range(14)]
    out = folder / "answers.jsonl"
    done = rediprune("batch", bundle, requests_of(rows), "-o", out, "--backend", "ort", "--json")
    told = json.loads(done.stdout)
    lines = answers(out)
    assert [line["custom_id"] for line in lines] == [each["custom_id"] for each in rows]
    pipe = Pipeline.load(bundle, "ort")
    tokens = 0
    for number, line in enumerate(lines):
        text = f"What is this, number {number}?"
        pictures = [] if number % 3 == 2 else [folder / PICTURES[number % 2]]
        alone = pipe.generate(text, pictures, max_new_tokens=4 + number % 5, temperature=0)
        assert text_of(line) == alone.text and line["error"] is None
        tokens += len(alone.token_ids)
    assert (told["requests"], told["errors"], told["completion_tokens"], told["found"]) == (14, 0, tokens, 0)
    assert told["tokens_per_second"] > 0 and told["peak_memory"] > 1 << 20
    before = out.read_bytes()
    again = rediprune("batch", bundle, requests_of(rows), "-o", out, "--backend", "ort")
    assert "14 of them before" in again.stdout and out.read_bytes() == before


def test_bad_rows_become_errors_with_a_reason(
    rediprune: CommandLine, bundle: Path, requests_of: Requests, folder: Path
) -> None:
    def about(url: str, number: int) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        return row(number, messages=[{"role": "user", "content": parts}], max_tokens=2)

    outside = folder.parent / "outside.jpg"
    outside.write_bytes((folder / PICTURES[0]).read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [
        row(0),
        "{not json",
        row(2, n=3),
        row(3, model="other"),
        about("none.jpg", 4),
        about("../outside.jpg", 5),
        about(str(outside), 6),
        about(outside.as_uri(), 7),
        about("https://example.org/a.png", 8),
        about("broken.png", 9),
        row(10, messages=[]),
        row(0),
        row(12, max_tokens=100_000),
        row(13),
    ]
    out = folder / "answers.jsonl"
    done = rediprune("batch", bundle, requests_of(rows), "-o", out, "--backend", "ort", code=1)
    lines = answers(out)
    reasons = [line["error"]["message"] if line["error"] else None for line in lines]
    expected = (
        None,
        "not JSON",
        "n must be 1",
        "no model 'other'",
        "no such file",
        "no such file",
        "--allowed-local-media-path",
        "--allowed-local-media-path",
        "--allowed-media-domains",
        "image",
        "messages",
        "row 1 has the same custom_id",
        "max_tokens",
        None,
    )
    for reason, words in zip(reasons, expected, strict=True):
        assert (reason is None) == (words is None), (reason, words)
        assert words is None or (reason is not None and words in reason), (reason, words)
    assert "12 errors" in done.stdout
    assert lines[1]["custom_id"] is None and lines[1]["response"] is None
    assert lines[2]["response"]["status_code"] == 400 and lines[3]["response"]["status_code"] == 404
    assert str(outside) not in out.read_text()
    out.unlink()
    allowed = ["--allowed-local-media-path", folder.parent]
    rediprune("batch", bundle, requests_of([rows[6], rows[7]]), "-o", out, "--backend", "ort", *allowed)
    assert text_of(answers(out)[0]) == text_of(answers(out)[1])


def test_strict_stops_and_goes_on_once_mended(
    rediprune: CommandLine, bundle: Path, requests_of: Requests, folder: Path
) -> None:
    rows: list[Any] = [row(0), row(1), row(2, n=5), row(3)]
    out, options = folder / "answers.jsonl", ("--backend", "ort", "--strict")
    done = rediprune("batch", bundle, requests_of(rows), "-o", out, *options, code=2)
    assert "row 3 (row-2): n must be 1" in done.stderr.replace("\n", " ")
    assert [line["custom_id"] for line in answers(out)] == ["row-0", "row-1"]
    rows[2] = row(2)
    rediprune("batch", bundle, requests_of(rows), "-o", out, *options)
    assert [line["custom_id"] for line in answers(out)] == ["row-0", "row-1", "row-2", "row-3"]


def test_another_input_bundle_or_setting_is_refused(
    rediprune: CommandLine, bundle: Path, bundle_of: Callable[[str], Path], requests_of: Requests, folder: Path
) -> None:
    out = folder / "answers.jsonl"
    rediprune("batch", bundle, requests_of([row(0), row(1)]), "-o", out, "--backend", "ort")
    before = out.read_bytes()
    for used, rows, options in (
        (bundle, [row(0), row(1, max_tokens=1)], ()),
        (bundle, [row(0)], ()),
        (bundle, [row(0), row(1)], ("--keep", 0.5)),
        (f"{bundle.name}={bundle_of('llava_qwen2')}", [row(0), row(1)], ()),
    ):
        done = rediprune("batch", used, requests_of(rows), "-o", out, "--backend", "ort", *options, code=2)
        assert "is not the answer to row" in done.stderr.replace("\n", " ")
        assert out.read_bytes() == before


def test_the_input_is_never_written(rediprune: CommandLine, bundle: Path, requests_of: Requests, folder: Path) -> None:
    requests = requests_of([row(0)])
    requests.write_text(requests.read_text().rstrip("\n"))
    link = folder / "link.jsonl"
    link.symlink_to(requests)
    before = requests.read_bytes()
    for out in (requests, link):
        assert "is the input itself" in rediprune("batch", bundle, requests, "-o", out, code=2).stderr
        assert requests.read_bytes() == before


def test_options_of_ray_are_refused_without_it(
    rediprune: CommandLine, bundle: Path, requests_of: Requests, folder: Path
) -> None:
    requests, out = requests_of([row(0)]), folder / "answers.jsonl"
    for option in (("--ray-address", "10.0.0.1:1"), ("--workers", 3), ("--worker-cpus", 2)):
        told = rediprune("batch", bundle, requests, "-o", out, *option, code=2).stderr.replace("\n", " ")
        assert f"{option[0]} does nothing without --ray" in told
    told = rediprune("batch", bundle, requests, "-o", out, "--keep", 7, code=2).stderr.replace("\n", " ")
    assert 'let requests say it: "keep": 7' in told
    assert not out.exists()


def test_a_folder_and_a_table_with_one_question(rediprune: CommandLine, bundle: Path, folder: Path) -> None:
    out = folder / "answers.jsonl"
    asked = ("-o", out, "--backend", "ort", "--prompt", "What is it?", "--max-new-tokens", 3, "--temperature", 0)
    rediprune("batch", bundle, folder, *asked)
    by_name = {line["custom_id"]: text_of(line) for line in answers(out)}
    assert set(by_name) == set(PICTURES)
    pipe = Pipeline.load(bundle, "ort")
    for name, text in by_name.items():
        assert text == pipe.generate("What is it?", [folder / name], max_new_tokens=3, temperature=0).text
    out.unlink()
    (folder / "in.csv").write_text("path\nchelsea.jpg\nastronaut.jpg\n")
    rediprune("batch", bundle, folder / "in.csv", *asked)
    assert [text_of(line) for line in answers(out)] == [by_name["chelsea.jpg"], by_name["astronaut.jpg"]]


def _start(bundle: Path, requests: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "batch", str(bundle), str(requests), "-o", str(out), "--backend", "ort", "--max-batch", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ.copy())


@pytest.mark.process
@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.smoke), pytest.param(12, marks=pytest.mark.slow)])
def test_killed_anywhere_it_ends_with_every_answer_once(
    bundle: Path, requests_of: Requests, folder: Path, kills: int
) -> None:
    rows: list[Any] = [row(number, max_tokens=20, ignore_eos=True) for number in range(300)]
    rows[40] = "{broken"
    requests, out, chance = requests_of(rows), folder / "answers.jsonl", random.Random(kills)
    seen = 0
    for _ in range(kills):
        process = _start(bundle, requests, out)
        more = seen + chance.randrange(1, 300 // kills)  # killed after so many answers, and a little more
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            if out.exists() and out.read_bytes().count(b"\n") >= more:
                break
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = out.read_bytes().count(b"\n")
        assert now >= seen  # nothing that was answered is lost
        seen = now
    process = _start(bundle, requests, out)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told  # a row is broken
    lines = answers(out)
    assert [line["custom_id"] for line in lines] == [None if number == 40 else f"row-{number}" for number in range(300)]
    whole = folder / "whole.jsonl"
    _start(bundle, requests, whole).communicate(timeout=120)
    texts = [[line["error"] or text_of(line) for line in each] for each in (lines, answers(whole))]
    assert texts[0] == texts[1]
