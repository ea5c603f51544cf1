"""Videos made here frame by frame, so that it is known which frames must come back."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media import video as module
from rediprune.runtime.media.video import load_video, stand_ins

from .clips import make_video, number_of


@pytest.mark.parametrize(("count", "frames"), [(24, 8), (24, 1), (24, 24), (10, 3), (3, 8), (1, 4), (2, 2), (30, 7)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uniform_sampling(tmp_path, count, frames, suffix):
    images = load_video(make_video(tmp_path / f"clip.{suffix}", count), frames)
    assert [number_of(image) for image in images] == np.linspace(0, count - 1, frames).astype(int).tolist()
    assert all(image.mode == "RGB" and image.size == (64, 48) for image in images)


def test_bytes_and_path_agree(tmp_path):
    path = make_video(tmp_path / "clip.mp4", 12)
    for one, other in zip(load_video(path, 4), load_video(path.read_bytes(), 4), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("claimed", [5, 19, 40])
def test_the_decoded_frames_count_whatever_the_packets_say(tmp_path, monkeypatch, claimed):
    path = make_video(tmp_path / "clip.mp4", 20)
    monkeypatch.setattr(module, "_count_packets", lambda source: claimed)
    assert [number_of(image) for image in load_video(path, 5)] == [0, 4, 9, 14, 19]


def test_only_sampled_frames_are_kept(tmp_path, monkeypatch):
    converted = []
    upright = module._upright
    monkeypatch.setattr(module, "_upright", lambda frame: converted.append(1) or upright(frame))
    load_video(make_video(tmp_path / "clip.mp4", 30), 4)
    assert len(converted) == 4


def test_rotation_is_undone(tmp_path):
    path = make_video(tmp_path / "clip.mp4", 3)
    data = bytearray(path.read_bytes())
    # The display matrix in the track header, as a phone held upright writes it: a quarter turn clockwise.
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[at : at + 36])[0] == 0x10000
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    image = load_video(bytes(data), 2)[1]
    assert image.size == (48, 64)
    pixels = np.asarray(image).mean(axis=2)
    assert pixels[5, -5] > 200  # upper left before, upper right now
    assert pixels[5, 5] < 100


def refused(source, *told, frames=4):
    with pytest.raises(RedipruneError) as caught:
        load_video(source, frames)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in told), message


def test_what_is_no_video_is_refused(tmp_path):
    refused(tmp_path / "absent.mp4", "no file", "absent.mp4")
    refused(tmp_path, "no file")
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    refused(tmp_path / "text.mp4", "text.mp4", "cannot be decoded")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty.mp4", "cannot be decoded")
    refused(b"", "cannot be decoded")
    half = make_video(tmp_path / "whole.mp4", 20).read_bytes()[:600]
    refused(half, "cannot be decoded")
    refused(make_video(tmp_path / "none.mkv", 0), "none.mkv")


def test_sound_alone_is_refused(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refused(buffer.getvalue(), "no video frames")


@pytest.mark.parametrize("frames", [0, -1, 2.5, True])
def test_wrong_number_of_frames_is_refused(tmp_path, frames):
    refused(make_video(tmp_path / "clip.mp4", 3), "frames must be", frames=frames)


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (64, 48), (200, 200, 200)).save(tmp_path / "still.jpg")
    assert len(load_video(tmp_path / "still.jpg", 3)) == 3


def picture(level, corner=None):
    """A grey picture; `corner` is the level of its lowest right 10 × 10 pixels."""
    pixels = np.full((96, 128, 3), level, np.uint8)
    if corner is not None:
        pixels[-10:, -10:] = corner
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [(0, [0, 0, 2, 3, 4, 5]), (2, [0, 0, 0, 3, 3, 5]), (4, [0, 0, 0, 0, 4, 5]), (255, [0, 0, 0, 0, 0, 0])],
)
def test_frames_stand_in_for_those_like_them(tolerance, expected):
    # Equal, then slowly brighter, then the same but for a small thing, which a mean over the picture would miss.
    frames = [picture(100), picture(100), picture(102), picture(104), picture(106), picture(100, corner=180)]
    assert stand_ins(frames, tolerance).tolist() == expected
    assert stand_ins([], tolerance).tolist() == []


def test_slow_change_does_not_creep():
    levels = stand_ins([picture(level) for level in range(100, 120)], 3)
    assert levels.tolist() == [at - at % 4 for at in range(20)]


def test_more_frames_than_can_be_meant_are_refused_at_once(clip: Path) -> None:
    with pytest.raises(RedipruneError, match="frames must be at most 100,000, not 1,000,000,000"):
        load_video(clip, 1_000_000_000)


def test_repeated_frames_count_towards_the_limit(clip: Path) -> None:
    """A short film repeats its frames, each of which is encoded as often as it was asked for."""
    with pytest.raises(RedipruneError, match=r"100000 frames of .* are more than 200 million together"):
        load_video(clip, 100_000)
