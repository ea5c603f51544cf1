"""One pipeline, many threads: every answer is the one that a single thread gets."""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rediprune.runtime import Answer, Pipeline, RedipruneError
from rediprune.runtime.backends import openvino, ort
from rediprune.runtime.backends.session import BACKENDS, open_session
from rediprune.runtime.bundle import Bundle

THREADS = 6
QUESTIONS = ["What is this?", "How many stars are there, and where?", "A red suit?", "你好 🦊?"]


def requests_of(photo: Path, cat: Path, clip: Path) -> list[tuple[str, dict[str, Any]]]:
    """Requests of many shapes: pictures, several, clips, text alone, greedy and sampled."""
    media: list[dict[str, Any]] = [
        {"images": [photo]},
        {"images": [cat], "keep": 1.0},
        {"images": [photo, cat], "keep": 5},
        {"videos": [clip], "frames": 3},
        {"videos": [clip], "frames": 3, "frame_tolerance": 2.0, "keep": 0.5},
        {},
    ]
    sampling: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.3, "seed": 5}]
    return [
        (QUESTIONS[(at + which) % len(QUESTIONS)], {**given, **how, "max_new_tokens": 4 + at})
        for at, given in enumerate(media)
        for which, how in enumerate(sampling)
    ] + [("What does <image> mean in this text?", {"max_new_tokens": 3, "temperature": 0.0})]


def facts(answer: Answer) -> Any:
    kept = [indices.tolist() for indices in answer.kept]
    return answer.text, answer.token_ids, kept, answer.prompt_tokens, answer.kept_tokens, answer.finish_reason


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of `work(0..count-1)`, each in a thread, all begun at the same moment."""
    start = threading.Barrier(count)

    def begin(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@pytest.mark.family
@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_answers_are_those_of_one_thread(
    backend: str, bundle_of: Callable[[str], Path], photo: Path, cat: Path, clip: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    requests = requests_of(photo, cat, clip)
    alone = Pipeline.load(bundle_of("video_llava"), backend, threads=1)
    expected = [facts(alone.generate(question, **given)) for question, given in requests]
    assert len({str(each) for each in expected}) > len(requests) // 2
    shared = Pipeline.load(bundle_of("video_llava"), backend, threads=1)

    def work(number: int) -> list[tuple[int, Any]]:
        order = np.random.default_rng(number).permutation(len(requests))
        return [(at, facts(shared.generate(requests[at][0], **requests[at][1]))) for at in map(int, order)]

    for found in in_threads(THREADS, work):
        for at, answer in found:
            assert answer == expected[at], requests[at]


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_streams_may_interleave_in_one_thread_and_in_several(
    backend: str, bundle_of: Callable[[str], Path], photo: Path, cat: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    pipeline = Pipeline.load(bundle_of("llava"), backend, threads=1)
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0}
    asked = [(question, [picture]) for question in QUESTIONS[:2] for picture in (photo, cat)]
    expected = [pipeline.generate(*each, **options).text for each in asked]

    def read_in_turns(number: int) -> list[str]:
        streams = [pipeline.stream(*each, **options) for each in asked]
        texts = ["" for _ in streams]
        for _ in range(9):
            for at, stream in enumerate(streams):
                texts[at] += next(stream, "")
        return texts

    assert read_in_turns(0) == expected
    assert all(texts == expected for texts in in_threads(3, read_in_turns))


def test_each_stage_is_opened_once_and_a_picture_is_encoded_once(
    bundle_of: Callable[[str], Path], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def noted(backend: str, bundle: Bundle, stage: str, threads: int) -> Any:
        opened.append(stage)
        return open_session(backend, bundle, stage, threads)

    monkeypatch.setattr("rediprune.runtime.pipeline.open_session", noted)
    for lazy in (True, False):
        opened.clear()
        pipeline = Pipeline.load(bundle_of("llava"), lazy=lazy)
        answers = in_threads(
            THREADS, lambda number, shared=pipeline: shared.generate("What?", [photo], max_new_tokens=2)
        )
        assert sorted(opened) == ["embed", "language", "project", "select", "vision"]
        assert sorted(answer.encoded_frames for answer in answers) == [0] * (THREADS - 1) + [1]


@pytest.mark.parametrize("stage", ["vision", "project", "embed"])
@pytest.mark.parametrize("backend", [ort, openvino], ids=["ort", "openvino"])
def test_a_session_takes_several_threads(backend: Any, stage: str, bundle_of: Callable[[str], Path]) -> None:
    """Whatever the others ask for meanwhile, in shapes of their own."""
    options = BACKENDS["openvino"].options if backend is openvino else {}
    if backend is openvino:
        pytest.importorskip("openvino")
    bundle = Bundle.open(bundle_of("llava"))
    session = backend.open_stage(bundle, stage, 1, **options)
    (port,) = session.spec.inputs
    random = np.random.default_rng(0)

    def feed(size: int) -> np.ndarray:
        shape = [size if isinstance(dim, str) else dim for dim in port.shape]
        values = random.standard_normal(shape) if port.dtype != "int64" else random.integers(0, 500, shape)
        return values.astype(port.dtype)

    feeds = [{port.name: feed(1 if stage == "embed" else 1 + at % 3)} for at in range(THREADS)]
    expected = [session.run(each) for each in feeds]

    def work(number: int) -> None:
        for _ in range(20):
            for name, value in session.run(feeds[number]).items():
                assert np.array_equal(value, expected[number][name])

    in_threads(THREADS, work)


def test_a_failing_request_leaves_the_others_alone(
    bundle_of: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("this is no picture")
    pipeline = Pipeline.load(bundle_of("llava"))
    expected = pipeline.generate("What?", [photo], max_new_tokens=6, temperature=0.0).token_ids

    def work(number: int) -> Sequence[int]:
        if number % 2:
            with pytest.raises(RedipruneError, match=r"text\.jpg"):
                pipeline.generate("What?", [tmp_path / "text.jpg"])
            return expected
        return pipeline.generate("What?", [photo], max_new_tokens=6, temperature=0.0).token_ids

    assert in_threads(THREADS, work) == [expected] * THREADS


def test_replaced_holds_for_requests_that_begin_within(bundle_of: Callable[[str], Path], photo: Path) -> None:
    """In every thread; blocks of several threads may overlap."""
    pipeline = Pipeline.load(bundle_of("llava"))
    plain = pipeline.select("What?", [photo], keep=4)[0].tolist()

    class First:
        """Keeps the first tokens."""

        batch = 1

        def run(self, inputs: Any) -> Any:
            features = np.asarray(inputs["features"])
            indices = np.tile(np.arange(int(inputs["num_keep"])), (features.shape[0], 1))
            return {"indices": indices, "kept": features[:, : indices.shape[1]]}

    with pipeline.replaced(select=First()):
        kept = in_threads(4, lambda number: pipeline.select("What?", [photo], keep=4)[0].tolist())
    assert kept == [[[0, 1, 2, 3]]] * 4 and plain != [[0, 1, 2, 3]]

    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with pipeline.replaced(select=First()):
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with pipeline.replaced(project=pipeline.stage("project")):
        thread.start()
        entered.wait(10)
    assert pipeline.select("What?", [photo], keep=4)[0].tolist() == [[0, 1, 2, 3]]  # the other block still holds
    left.set()
    thread.join()
    assert pipeline.select("What?", [photo], keep=4)[0].tolist() == plain


def test_an_answer_keeps_no_features_alive(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"), cache_bytes=0)
    held: list[Any] = []

    class Vision:
        batch = 1

        def __init__(self, session: Any):
            self.session = session

        def run(self, inputs: Any) -> Any:
            outputs = {name: Traced(value) for name, value in self.session.run(inputs).items()}
            held.extend(weakref.ref(value) for value in outputs.values())
            return outputs

    with pipeline.replaced(vision=Vision(pipeline.stage("vision"))):
        answer = pipeline.generate("What?", [photo], max_new_tokens=2)
        gc.collect()
        assert held and all(reference() is None for reference in held) and answer.visuals == []
        held.clear()
        asked = pipeline.generate("What?", [photo], max_new_tokens=2, return_visuals=True)
        assert asked.visuals[0].features is held[0]() and len(asked.visuals[0].frames) == 1


class Traced(np.ndarray):
    """An array that can be referred to weakly, as numpy's own can not everywhere."""

    def __new__(cls, array: np.ndarray) -> "Traced":
        return np.asarray(array).view(cls)
