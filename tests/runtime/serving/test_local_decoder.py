"""Answers of a real engine in the scheduler: the same to the bit, whatever the cache holds and whoever is decoded beside."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rediprune.runtime import Pipeline
from rediprune.runtime.backends.batching import open_batch
from rediprune.runtime.serving.scheduler import Job, Scheduler

TOKENS = 6


class Noted:
    """Takes the likeliest tokens, and keeps the logits."""

    def __init__(self) -> None:
        self.logits: list[np.ndarray] = []
        self.done = threading.Event()

    def token(self, logits: np.ndarray) -> int | None:
        self.logits.append(np.array(logits))
        if len(self.logits) == TOKENS:
            self.done.set()
            return None
        return int(logits.argmax())

    def failed(self, error: Exception) -> None:
        raise AssertionError(error)


@pytest.mark.parametrize("chunk", [256, 32, 39])  # 39: of 40 tokens one would be left over
@pytest.mark.parametrize("slots", [1, 3])
def test_logits_are_those_of_a_request_alone(slots: int, chunk: int, bundle_of: Callable[[str], Path]) -> None:
    pipeline = Pipeline.load(bundle_of("llava_qwen2"), "ort")
    language, table = pipeline.stage("language"), pipeline.stage("embed")
    random, width = np.random.default_rng(0), pipeline.bundle.manifest.decoder.width

    def embed(ids: list[int]) -> np.ndarray:
        return np.asarray(table.run({"input_ids": np.asarray([ids], np.int64)})["embeds"])[0]

    head = random.standard_normal((20, width)).astype(np.float32)
    prompts = [np.concatenate([head, random.standard_normal((20, width)).astype(np.float32)]) for _ in range(3)]
    expected = []
    for prompt in prompts:
        decoding, logits = language.start(len(prompt) + TOKENS), []
        fed = prompt
        for _ in range(TOKENS):
            logits.append(np.array(decoding.step(fed[None])))
            fed = embed([int(logits[-1].argmax())])
        expected.append(logits)
    scheduler = Scheduler(
        open_batch(language), embed, max_slots=slots, max_positions=4096, max_waiting=50, prefill_chunk=chunk
    )
    order = [0, 1, 2, 0, 0, 2, 1, 1, 0, 2]  # many find their whole prompt in the cache
    sinks, jobs = [Noted() for _ in order], []
    for number, sink in zip(order, sinks, strict=True):
        jobs.append(Job(prompts[number], TOKENS, sink))
        scheduler.submit(jobs[-1])
    assert all(sink.done.wait(60) for sink in sinks)
    scheduler.stop()
    assert any(job.reused > 20 for job in jobs)
    for number, sink in zip(order, sinks, strict=True):
        assert all(np.array_equal(ours, alone) for ours, alone in zip(sink.logits, expected[number], strict=True))
