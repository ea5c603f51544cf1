"""What an answer says beside its text."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rediprune.runtime import SelectOptions
from rediprune.runtime.media.visualize import draw_answer

from .conftest import Running

QUESTION = "What is in it?"


def overlay(server: Running, messages: Any, **fields: Any) -> Image.Image:
    body = {"model": "tiny", "messages": messages, "max_tokens": 3, "keep": 4, "rediprune": {"return_overlay": True}}
    uri = server.post(body | fields).json()["rediprune"]["overlay"]
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_the_overlay_is_the_picture_of_the_kept_patches_alone(tiny: Running, ask: Any, cat: Path, clip: Path) -> None:
    for path, kind in ((cat, "image"), (clip, "video")):
        drawn = overlay(tiny, ask(QUESTION, path), frames=3)
        question: Any = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": QUESTION}]}]
        prepared = tiny.pipeline.prepare(
            question,
            **{f"{kind}s": [path]},
            selection=SelectOptions(keep=4, frames=3),
            return_visuals=True,
        )
        assert drawn.tobytes() == draw_answer(prepared.answer, tiny.pipeline.processor, bare=True).tobytes()
    assert overlay(tiny, ask("word " * 500, cat)).size == overlay(tiny, ask(QUESTION, cat)).size


def test_a_question_without_pictures_has_no_overlay(tiny: Running, ask: Any) -> None:
    body = {"model": "tiny", "messages": ask(QUESTION), "max_tokens": 2, "rediprune": {"return_overlay": True}}
    own = tiny.post(body).json()["rediprune"]
    assert "overlay" not in own and own["visual_tokens"] == own["kept_tokens"] == 0 and own["kept"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_clip_is_told(tiny: Running, ask: Any, clip: Path, tmp_path: Path, stream: bool) -> None:
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    (tmp_path / "damaged.mp4").write_bytes(data)
    body = {
        "model": "tiny",
        "messages": ask(QUESTION, tmp_path / "damaged.mp4"),
        "max_tokens": 2,
        "frames": 2,
        "keep": 4,
    }
    reply = tiny.post(body | {"stream": stream})
    if stream:
        assert "is damaged" in reply.text and str(tmp_path) not in reply.text
    else:
        warnings = reply.json()["rediprune"]["warnings"]
        assert len(warnings) == 1 and warnings[0].startswith("the video is damaged")


def test_a_checkpoint_without_a_chat_template_is_told(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path], ask: Any
) -> None:
    with serve({"tiny": bundle_of("llava")}) as server:
        warnings = server.post({"model": "tiny", "messages": ask(QUESTION), "max_tokens": 1}).json()["rediprune"][
            "warnings"
        ]
        expected = server.pipeline.generate(QUESTION, max_new_tokens=1).warnings
        assert warnings == expected


def test_times_add_up(tiny: Running, ask: Any, photo: Path) -> None:
    own = tiny.post({"model": "tiny", "messages": ask(QUESTION, photo), "max_tokens": 9, "keep": 4}).json()["rediprune"]
    times = own["timings"]
    assert times["total"] == pytest.approx(times["time_to_first_token"] + times["decode"])
    before = ("preprocess", "vision", "select", "project", "embed", "queue", "prefill")
    assert 0 < sum(times[stage] for stage in before) <= times["time_to_first_token"] * 1.001
    assert min(times.values()) >= 0 and times["vision"] > 0 and own["encoded_frames"] >= 1


def test_going_on_behind_the_end(demo_bundle: Path, serve: Callable[..., Any], ask: Any, scene: Path) -> None:
    with serve({"demo": demo_bundle}) as server:
        body = {"model": "demo", "messages": ask("What is above the orange triangle?", scene), "max_tokens": 20}
        short, long = server.post(body).json(), server.post(body | {"ignore_eos": True}).json()
    assert short["choices"][0]["finish_reason"] == "stop" and short["usage"]["completion_tokens"] < 20
    assert long["choices"][0]["finish_reason"] == "length" and long["usage"]["completion_tokens"] == 20


def test_usage_with_every_piece(tiny: Running, ask: Any) -> None:
    client = tiny.client()
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ask(QUESTION), max_tokens=5, stream=True, stream_options=options
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks) and counts == sorted(counts) and counts[-1] == 5


def test_a_backend_that_cannot_batch_answers_one_at_a_time(
    serve: Callable[..., Any], bundle_of: Callable[[str], Path], ask: Any, cat: Path
) -> None:
    pytest.importorskip("openvino")
    with serve({"tiny": bundle_of("llava")}, backend="openvino") as server:
        assert server.metric("max_batch_size") == 1 and not server.models["tiny"].batches
        asked = [(f"Question {number}?", [cat] * (number % 2)) for number in range(6)]
        expected = [server.pipeline.generate(q, images=p, keep=0.5, max_new_tokens=10).text for q, p in asked]

        def one(question: str, pictures: list[Path]) -> str:
            body = {"model": "tiny", "messages": ask(question, *pictures), "max_tokens": 10, "keep": 0.5}
            return server.post(body).json()["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda each: one(*each), asked)) == expected
