"""Media made to harm: small bodies that would cost gigabytes or hours, and files that lead to others."""

import base64
import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from rediprune.runtime import MediaLimits
from rediprune.runtime.memory import peak_memory

from .conftest import Running

pytestmark = pytest.mark.server

LIMITS = MediaLimits(video_packets=2000, video_seconds=600)


@pytest.fixture(scope="module")
def limited(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> Iterator[Running]:
    with serve({"tiny": bundle_of("llava_next_video")}, limits=LIMITS) as server:
        yield server


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes | None = None, *extra: bytes) -> bytes:
    """A grey PNG of 1 bit; `rows` are its compressed pixels."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9) if rows is None else rows
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def picture(form: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, form, **options)
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    images = [Image.new("L", (8, 8), at % 256) for at in range(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=20)
    return buffer.getvalue()


def film(frames: int, rate: int = 25) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        for at in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), at % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def ask(server: Running, kind: str, *data: bytes, **fields: Any) -> Any:
    urls = [f"data:{kind.split('_')[0]}/x;base64,{base64.b64encode(each).decode()}" for each in data]
    content = [*({"type": kind, kind: {"url": url}} for url in urls), {"type": "text", "text": "What is it?"}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    return server.post(body | fields, timeout=120)


@cache
def enormous() -> bytes:
    """200 MiB of zeros in 200 kB."""
    return zlib.compress(bytes(200 << 20), 9)


@pytest.mark.parametrize(
    ("kind", "make", "status", "words"),
    [
        ("image_url", lambda: png(1, 1), 200, ""),
        ("image_url", lambda: png(20_000, 20_000), 400, "pixels"),
        ("image_url", lambda: png(20_000, 1), 400, "strip"),
        ("image_url", lambda: png(0, 0, b""), 400, ""),
        ("image_url", lambda: png(2**31 - 1, 2**31 - 1, b""), 400, ""),
        ("image_url", lambda: png(8, 8, enormous()), 200, ""),  # more pixels than it has room for: they are left out
        ("image_url", lambda: png(8, 8, None, chunk(b"zTXt", b"a\0\0" + enormous())), 400, ""),
        (
            "image_url",
            lambda: png(8, 8, None, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))] * 80),
            400,
            "",
        ),
        ("image_url", lambda: png(8, 8, None, chunk(b"iCCP", b"a\0\0" + enormous())), None, ""),
        ("image_url", lambda: picture("PNG") + b"PK\x03\x04" + bytes(1000), 200, ""),  # also a ZIP file
        ("image_url", lambda: picture("JPEG")[:300], 400, "damaged"),
        ("image_url", lambda: picture("ICO"), 400, "not a picture"),
        ("image_url", lambda: picture("JPEG2000"), 400, "not a picture"),
        ("image_url", lambda: picture("PDF"), 400, "not a picture"),
        ("image_url", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "not a picture"),
        (
            "image_url",
            lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            400,
            "",
        ),
        ("image_url", lambda: gif(3000), 200, ""),  # its first picture
        ("video_url", lambda: gif(3000), 400, "more than 2,000"),
        ("video_url", lambda: film(2500), 400, "more than 2,000"),
        ("video_url", lambda: film(700, rate=1), 400, "lasts"),
        ("video_url", lambda: png(20_000, 20_000), 400, ""),
        ("video_url", lambda: picture("JPEG") * 3000, None, ""),
        ("video_url", lambda: b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", 400, ""),
        ("video_url", lambda: b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n", 400, ""),
        ("video_url", lambda: b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>', 400, ""),
        ("video_url", lambda: b"ffconcat version 1.0\nfile 'clip.mp4'\n", 400, ""),
        ("video_url", lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n", 400, ""),
        ("video_url", lambda: b"[playlist]\nFile1=http://127.0.0.1/\n", 400, ""),
    ],
)
def test_what_is_made_to_harm(
    limited: Running, kind: str, make: Callable[[], bytes], status: int | None, words: str
) -> None:
    data = make()
    before, began = peak_memory(), time.monotonic()
    reply = ask(limited, kind, data, frames=4)
    assert reply.status_code in ((200, 400) if status is None else (status,)), reply.text[:300]
    assert time.monotonic() - began < 20
    assert peak_memory() - before < 150 << 20
    if reply.status_code == 400:
        message = reply.json()["error"]["message"]
        assert words in message and "/" not in message and "0x" not in message and "Traceback" not in message


def test_many_pictures_are_bounded_together(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> None:
    with serve({"tiny": bundle_of("llava_next_video")}, limits=MediaLimits(request_pixels=3000)) as server:
        assert ask(server, "image_url", picture("PNG"), picture("JPEG")).status_code == 200  # 1200 pixels each
        reply = ask(server, "image_url", picture("PNG"), picture("JPEG"), picture("WEBP"))
        assert reply.status_code == 400 and "together" in reply.json()["error"]["message"]
        assert ask(server, "image_url", *[picture("PNG")] * 17).status_code == 400
        assert ask(server, "video_url", film(30), frames=64).status_code == 400
        assert ask(server, "video_url", film(2), frames=64).status_code == 200  # two frames, one 63 times
