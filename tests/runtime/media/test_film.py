"""Odd films: cover art, several streams, other files inside, and bytes gone bad."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.video import load_video

from .clips import jpeg, make_video, number_of, packets_of, picture_of


def refused(source, *told: str, frames: int = 4) -> None:
    with pytest.raises(RedipruneError) as caught:
        load_video(source, frames, warn=lambda text: None)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in told), message


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def with_cover(data: bytes, first: bool) -> bytes:
    """An MP4 with a cover picture, which is then stream 0 or the last."""
    at = data.rindex(b"moov") - 4
    size = struct.unpack(">I", data[at : at + 4])[0]
    moov, parts = data[at + 8 : at + size], []
    while moov:
        length = struct.unpack(">I", moov[:4])[0]
        parts.append(moov[:length])
        moov = moov[length:]
    parts = [part for part in parts if part[4:8] != b"udta"]
    cover = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 13, 0) + jpeg())))
    handler = box(b"hdlr", b"\0" * 8 + b"mdirappl" + b"\0" * 9)
    parts.insert(1 if first else len(parts), box(b"udta", box(b"meta", b"\0" * 4 + handler + cover)))
    return data[:at] + box(b"moov", b"".join(parts)) + data[at + size :]


def make_sound(path: Path, codec: str = "aac") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100)
        planar = codec != "pcm_s16le"
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 44100), np.float32 if planar else np.int16), "fltp" if planar else "s16", "mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))  # pyright: ignore
        container.mux(stream.encode(None))  # pyright: ignore
    return path


@pytest.mark.parametrize("first", [True, False])
def test_cover_art_is_not_the_film(tmp_path, first):
    data = with_cover(make_video(tmp_path / "clip.mp4", 20).read_bytes(), first)
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.video) == 2
    assert [number_of(image) for image in load_video(data, 5)] == [0, 4, 9, 14, 19]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4a", "aac"), ("a.mp3", "libmp3lame"), ("a.wav", "pcm_s16le"), ("a.mkv", "aac")]
)
def test_sound_is_refused(tmp_path, name, codec):
    path = make_sound(tmp_path / name, codec)
    refused(path, name, "no video frames", "sound")
    if name == "a.m4a":
        refused(with_cover(path.read_bytes(), True), "no video frames", "sound", "cover picture")


def make_two(path: Path, default: int) -> Path:
    """Two films in one file; the second is upright."""
    with av.open(str(path), "w") as container:
        streams = []
        for number, (width, height) in enumerate(((64, 48), (48, 64))):
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition(number == default)
            streams.append(stream)
        for at in range(6):
            for stream in streams:
                pixels = picture_of(at, (stream.width, stream.height))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("default", "size"), [(0, (64, 48)), (1, (48, 64)), (None, (64, 48))])
def test_of_several_streams_the_default_one(tmp_path, default, size):
    images = load_video(make_two(tmp_path / "two.mkv", -1 if default is None else default), 3)
    assert [image.size for image in images] == [size] * 3
    assert [number_of(image) for image in images] == [0, 2, 5]


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    "list.txt": "ffconcat version 1.0\nfile clip.mp4\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "list.mpd": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period>"
    "<AdaptationSet><Representation><BaseURL>clip.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "list.pls": "[playlist]\nFile1=clip.mp4\nNumberOfEntries=1\n",
    "list.asx": "<asx><entry><ref href='clip.mp4'/></entry></asx>",
    "list.avs": 'DirectShowSource("clip.mp4")\n',
    "list.vpy": "import os\n",
    "list.ref": "[Reference]\nRef1=clip.mp4\n",
    "frame%d.png": "not a picture",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("form", ["file", "bytes"])
def test_no_file_that_opens_another(tmp_path, monkeypatch, name, form):
    make_video(tmp_path / "clip.mp4", 6)
    make_video(tmp_path / "clip.ts", 6)
    (tmp_path / name).write_text(PLAYLISTS[name])
    monkeypatch.chdir(tmp_path)
    refused(Path(name) if form == "file" else (tmp_path / name).read_bytes(), "cannot be decoded")


def test_data_references_to_other_files_are_not_followed(tmp_path):
    data = bytearray(make_video(tmp_path / "clip.mp4", 6).read_bytes())
    at = data.index(b"url \0\0\0\x01")
    data[at : at + 8] = b"url \0\0\0\0"  # not in this file
    assert [number_of(image) for image in load_video(bytes(data), 2)] == [0, 5]  # taken from this file all the same


@pytest.mark.parametrize("codec", ["jpeg2000", "cfhd", "qtrle"])
def test_codecs_that_are_not_named_are_refused(tmp_path, codec):
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"jpeg2000": "yuv420p", "cfhd": "yuv422p10le", "qtrle": "rgb24"}[codec]
        for at in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_of(at), format="rgb24")))
        container.mux(stream.encode(None))
    refused(path, codec, "H.264")


GROUPS = {
    "mp4": ("libx264", {"x264-params": "keyint=5:bframes=0"}),
    "mkv": ("libx264", {"x264-params": "keyint=5:bframes=0"}),
    "avi": ("mjpeg", {}),
    "mov": ("libx265", {"x265-params": "keyint=5:bframes=0:log-level=none"}),
}


@pytest.mark.parametrize("suffix", GROUPS)
def test_a_bad_packet_costs_its_frames_and_is_said(tmp_path, suffix):
    codec, options = GROUPS[suffix]
    path = make_video(tmp_path / f"clip.{suffix}", 20, codec=codec, **options)
    told: list[str] = []
    assert [number_of(image) for image in load_video(path, 5, warn=told.append)] == [0, 4, 9, 14, 19]
    assert not told
    data = bytearray(path.read_bytes())
    position, size = packets_of(path)[11]
    data[position + 4 : position + size] = b"\xff" * (size - 4)
    path.write_bytes(data)
    numbers = [number_of(image) for image in load_video(path, 20, warn=told.append)]
    assert numbers[0] == 0 and numbers[-1] == 19 and numbers == sorted(numbers)
    assert 11 not in numbers and set(range(20)) - set(numbers) <= set(range(11, 15))  # at worst to the next key frame
    assert len(told) == 1 and str(path) in told[0] and "damaged" in told[0] and "\n" not in told[0]


def test_a_film_without_its_end_says_so(tmp_path):
    path = make_video(tmp_path / "clip.mkv", 20, **{"x264-params": "keyint=5:bframes=0"})
    data = path.read_bytes()
    position, _ = packets_of(path)[10]
    path.write_bytes(data[: position + 2])
    told: list[str] = []
    numbers = [number_of(image) for image in load_video(path, 3, warn=told.append)]
    assert numbers[0] == 0 and 8 <= numbers[-1] <= 10
    assert "seconds are there" in told[0]


def test_nothing_that_decodes_is_refused(tmp_path):
    path = make_video(tmp_path / "clip.avi", 5, codec="mjpeg")
    data = bytearray(path.read_bytes())
    for position, size in packets_of(path):
        data[position : position + size] = bytes(size)
    refused(bytes(data), "cannot be decoded")


def test_metadata_of_any_bytes(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        container.metadata["title"] = "a title of its own"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_of(3), format="rgb24")))
        container.mux(stream.encode(None))
    data = (tmp_path / "clip.mkv").read_bytes()
    assert number_of(load_video(data.replace(b"a title of its own", b"\xff\xfe title \x80\x81 ow"), 1)[0]) == 3


def test_damaged_films_are_warned_of_by_default(tmp_path):
    path = make_video(tmp_path / "clip.avi", 5, codec="mjpeg")
    data = bytearray(path.read_bytes())
    position, size = packets_of(path)[2]
    data[position : position + size] = bytes(size)
    with pytest.warns(UserWarning, match="1 of its packets do not decode"):
        load_video(bytes(data), 2)
