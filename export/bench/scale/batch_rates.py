"""The same requests answered by `Pipeline` in a loop, by `rediprune batch` and by `rediprune serve`, one after another.

    python -m rediprune.export.bench.scale.batch_rates engines/demo-fp32 --requests 200 --tokens 32

Loading is not counted. Every way must give the same answers.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from ....runtime import Pipeline
from ....runtime.batch.batch_job import Answering, run_batch
from ....runtime.batch.batch_rows import BatchSource, Question
from ....runtime.serving.load_models import Loading
from ....runtime.serving.media_fetch import MediaPolicy, fetch
from ....runtime.serving.protocol import ChatRequest
from ....runtime.serving.serve_settings import RequestLimits, ServeSettings
from ....runtime.serving.translate import translate
from ..soak_server import served
from .asked import ask_all, bodies


def in_a_loop(pipeline: Pipeline, asked: list[dict[str, Any]]) -> tuple[float, list[str]]:
    """Seconds of one answer after another, as a script around `Pipeline` takes them; and the answers."""
    texts, began = [], 0.0
    for number, body in enumerate([asked[0], *asked]):
        if number == 1:  # the first was to warm it
            began, texts = time.perf_counter(), []
        given = translate(ChatRequest.model_validate(body), RequestLimits(), {})
        images = [asyncio.run(fetch(ref.url, MediaPolicy(), ref.param)) for ref in given.media]
        answer = pipeline.generate(given.messages, images, selection=given.selection, generation=given.generation)
        texts.append(answer.text)
    return time.perf_counter() - began, texts


def in_a_batch(
    bundle: Path, backend: str, asked: list[dict[str, Any]], batch: int, threads: int
) -> tuple[float, list[str]]:
    """Seconds of `rediprune batch`, loading apart; and the answers."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "requests.jsonl"), Path(folder, "answers.jsonl")
        lines = [
            json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})
            for number, body in enumerate(asked)
        ]
        path.write_text("\n".join(lines))
        settings = ServeSettings(max_batch=batch, max_waiting=16 * batch)
        answering = Answering("m", bundle, Loading(backend, threads), settings, {})
        source = BatchSource(path, Question(), 1 << 28)
        summary = run_batch(source, answering, out, True, lambda *_: None)
        told = [json.loads(line) for line in out.read_text().splitlines()]
        return summary.seconds, [line["response"]["body"]["choices"][0]["message"]["content"] for line in told]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--keep", type=float, default=0.15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--backend", default="ort")
    given = parser.parse_args()
    asked = bodies("m", given.requests, given.pictures, given.tokens, given.keep)
    for body in asked:  # `Pipeline` ends an answer where the model does: so do the others
        body["ignore_eos"] = False
    loop, expected = in_a_loop(Pipeline.load(given.bundle, given.backend, threads=given.threads), asked)
    print(f"loop {loop:.2f} s", flush=True)
    batch, texts = in_a_batch(given.bundle, given.backend, asked, given.batch, given.threads)
    print(f"batch {batch:.2f} s", flush=True)
    options = ["--backend", given.backend, "--threads", str(given.threads), "--max-batch", str(given.batch)]
    with served({"m": given.bundle}, "1GB", *options) as (url, _):
        asyncio.run(ask_all(url, asked[:2], 1))
        server, served_texts = asyncio.run(ask_all(url, asked, 2 * given.batch))
    same = (
        sum(a == b for a, b in zip(texts, expected, strict=True)),
        sum(a == b for a, b in zip(served_texts, expected, strict=True)),
    )
    found = {"loop": loop, "batch": batch, "server": server, "batch_over_loop": loop / batch}
    found |= {"batch_over_server": server / batch, "equal_batch": same[0], "equal_server": same[1]}
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
