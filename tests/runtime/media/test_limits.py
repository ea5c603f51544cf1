"""Limits: what is refused before it is decoded, and how they are set."""

import io

import numpy as np
import pytest
from PIL import Image
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.images import load_image
from rediprune.runtime.media.limits import VARIABLE, MediaLimits, describe_limits
from rediprune.runtime.media.video import load_video

from .clips import make_video


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"image_bytes": 50}, "MB are read"),
        ({"image_pixels": 1999}, "50 × 40 pixels"),
        ({"image_ratio": 1}, "strip of 50 × 40"),
    ],
)
@pytest.mark.parametrize("form", ["file", "bytes", "picture"])
def test_pictures_beyond_a_limit_are_refused(tmp_path, limits, words, form):
    data = png(50, 40)
    (tmp_path / "a.png").write_bytes(data)
    source = {"file": tmp_path / "a.png", "bytes": data, "picture": Image.open(io.BytesIO(data))}[form]
    assert load_image(source).size == (50, 40)
    if form == "picture" and "image_bytes" in limits:
        pytest.skip("has no bytes")
    with pytest.raises(RedipruneError, match=words):
        load_image(source, MediaLimits(**limits))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"video_bytes": 50}, "MB are read"),
        ({"video_pixels": 64 * 48 - 1}, "frames of 64 × 48 pixels"),
        ({"video_packets": 23}, "more than 23 frames"),
        ({"video_seconds": 2}, "at most 2 are read"),
        ({"sampled_pixels": 4 * 64 * 48 - 1}, "take fewer"),
    ],
)
@pytest.mark.parametrize("form", ["file", "bytes"])
def test_films_beyond_a_limit_are_refused(tmp_path, monkeypatch, limits, words, form):
    path = make_video(tmp_path / "clip.mp4", 24)  # 2.4 seconds
    source = path if form == "file" else path.read_bytes()
    assert len(load_video(source, 4)) == 4
    if "sampled_pixels" not in limits:  # nothing is decoded by then
        monkeypatch.setattr("rediprune.runtime.media.film.Film.frames", lambda film: pytest.fail("decoded"))
    with pytest.raises(RedipruneError, match=words):
        load_video(source, 4, MediaLimits(**limits))


def test_a_limit_that_is_just_met_lets_pass(tmp_path):
    exact = MediaLimits(video_pixels=64 * 48, video_packets=24, video_seconds=3, sampled_pixels=4 * 64 * 48)
    assert len(load_video(make_video(tmp_path / "clip.mp4", 24), 4, exact)) == 4
    assert load_image(png(50, 40), MediaLimits(image_pixels=2000, image_bytes=len(png(50, 40)))).size == (50, 40)


def test_settings_and_environment(monkeypatch):
    assert MediaLimits.read() == MediaLimits()
    monkeypatch.setenv(VARIABLE, "image_pixels=20M, video_seconds=14400")
    assert MediaLimits.read() == MediaLimits(image_pixels=20_000_000, video_seconds=14400)
    assert MediaLimits.read(["image_pixels=1e3", "video_bytes=2G"]) == MediaLimits(
        image_pixels=1000, video_seconds=14400, video_bytes=2_000_000_000
    )
    monkeypatch.setenv(VARIABLE, "image_pixels=100")
    with pytest.raises(RedipruneError, match="50 × 40"):
        load_image(png(50, 40))


@pytest.mark.parametrize("text", ["pixels=3", "image_pixels", "image_pixels=", "image_pixels=many", "image_pixels=0"])
def test_settings_that_are_none_are_refused(text):
    with pytest.raises(RedipruneError, match="limit"):
        MediaLimits.read([text])


def test_limits_cannot_be_nothing():
    for wrong in (0, -1, float("nan")):
        with pytest.raises(RedipruneError, match="above 0"):
            MediaLimits(image_pixels=wrong)  # pyright: ignore[reportArgumentType]
    assert "image_pixels 50,000,000" in describe_limits()


def test_a_declared_size_is_refused_before_memory_is_taken():
    header = png(1, 1)
    huge = header.replace(header[16:24], (60_000).to_bytes(4, "big") + (60_000).to_bytes(4, "big"), 1)
    import zlib

    huge = huge[:29] + zlib.crc32(huge[12:29]).to_bytes(4, "big") + huge[33:]
    with pytest.raises(RedipruneError, match="million"):
        load_image(huge)
    with pytest.raises(RedipruneError, match="million"):
        load_image(np.zeros((8000, 8000), np.uint8))
