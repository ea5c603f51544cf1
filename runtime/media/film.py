"""A film as FFmpeg reads it: only the formats that are named, within limits, and past what is damaged."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import av
import av.container
import av.error
import av.stream

from ..errors import RedipruneError
from .limits import MediaLimits

FORMATS = "MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV, Ogg or GIF"
SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".flv"),
    *(".wmv", ".asf", ".ogv"),
}

# FFmpeg's names of what is opened and decoded. No playlist, script, device or network format is among them, nor one that
# is a list of other files; pictures are films of one frame, and files of sound are opened to say that they are that.
_CONTAINERS = (
    *(
        "mov",
        "matroska",
        "avi",
        "mpegts",
        "mpeg",
        "mpegvideo",
        "flv",
        "asf",
        "ogg",
        "ivf",
        "obu",
        "h264",
        "hevc",
        "m4v",
    ),
    *("gif", "apng", "webp", "mjpeg", "jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe", "gif_pipe", "tiff_pipe"),
    *("wav", "mp3", "aac", "flac", "aiff"),
)
_CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "vvc"),
    *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h263", "flv", "wmv1", "wmv2", "wmv3"),
    *("vc1", "theora", "dvvideo", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo"),
    *("mjpeg", "gif", "png", "apng", "webp", "bmp", "tiff"),
)
_USUAL_RATE = 24.0
_MORE = "or raise the limit (rediprune run --help)"


class DamagedError(Exception):
    """A packet does not decode, or nothing does."""


class Film:
    """A film that is read, perhaps several times over.

    Attributes:
        careful: leave out packets that do not decode, on one thread, so that each error belongs to its own packet.
            Otherwise the first raises `DamagedError`.
        lost: packets that the last pass left out.
        marred: frames of the last pass that the decoder had to complete.
        rate: frames a second, as the file says; 24 where it does not, as transformers has it.
    """

    def __init__(self, file: BinaryIO | io.BytesIO, name: str, limits: MediaLimits):
        self.name = name
        self.limits = limits
        self.careful = False
        self.lost = self.marred = 0
        self._file = file
        self.rate = _USUAL_RATE
        self._packets_found = 0
        self._cut = ""
        self._packet_is_frame = False

    def count_packets(self) -> int:
        """How many packets there are that frames come of. Nothing is decoded.

        Raises:
            RedipruneError: there are too many, or they last too long.
        """
        count, first, last = 0, None, None
        with self._open() as (container, stream):
            for packet in self._packets(container, stream):
                if not packet.size or packet.is_discard:
                    continue
                count += 1
                if packet.pts is not None:
                    at = float(packet.pts * stream.time_base)
                    first, last = min(at, at if first is None else first), max(at, at if last is None else last)
                if count > self.limits.video_packets:
                    most = f"{self.limits.video_packets:,}"
                    raise RedipruneError(f"{self.name} has more than {most} frames: cut it, {_MORE}")
            declared = _declared_seconds(container, stream)
            self.rate = float(stream.average_rate or _USUAL_RATE)
            self._packet_is_frame = stream.codec_context.codec.name in ("h264", "hevc") and (
                container.format.name.startswith(("mov", "matroska"))
            )
        seconds = 0 if first is None or last is None else last - first
        if seconds > self.limits.video_seconds:
            most = f"{self.limits.video_seconds:,}"
            raise RedipruneError(
                f"{self.name} lasts {seconds:,.0f} seconds, and at most {most} are read: cut it, {_MORE}"
            )
        # The last frame's own time is not among the stamps, and files round what they declare.
        self._cut = f"only {seconds:.1f} of {declared:.1f} seconds are there" if seconds < 0.9 * declared - 0.2 else ""
        self._packets_found = count
        return count

    def frames(self) -> Iterator[av.VideoFrame]:
        """All frames, in order.

        Raises:
            DamagedError: a packet does not decode, and it is not to be careful.
            RedipruneError: a frame is too large.
        """
        self.lost = self.marred = 0
        with self._open() as (container, stream):
            for packet in self._packets(container, stream):
                for frame in self._decoded(stream, packet):
                    self.marred += bool(frame.is_corrupt)
                    self._check_pixels(frame.width, frame.height)
                    yield frame

    def damage(self, decoded: int) -> str:
        """What is wrong with a film of which so many frames were decoded; empty where nothing is known to be."""
        missing = self._packets_found - self.lost - decoded if self._packet_is_frame else 0
        found = (
            self.lost and f"{self.lost} of its packets do not decode, and their frames are left out",
            missing > 0 and f"{missing} of its frames are missing",
            self.marred and f"{self.marred} of its frames are incomplete",
            self._cut,
        )
        return "; ".join(str(what) for what in found if what)

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """The container, and the stream that is the film."""
        self._file.seek(0)
        options = {
            "format_whitelist": ",".join(_CONTAINERS),
            "codec_whitelist": ",".join(_CODECS),
            "protocol_whitelist": "",  # the bytes come from the file that is open; no other is opened
            "max_pixels": str(self.limits.video_pixels),
        }
        with av.open(
            self._file, "r", options=options, metadata_errors="replace", io_open=_refuse_to_open, buffer_size=1 << 18
        ) as container:
            stream = self._choose(container)
            context = stream.codec_context
            if context.codec.name not in _CODECS:
                raise RedipruneError(
                    f"{self.name} is in {context.codec.name}, which is not decoded here: convert it to H.264 in MP4"
                )
            self._check_pixels(stream.width, stream.height)
            context.options = {"max_pixels": options["max_pixels"]}
            if self.careful:
                context.thread_count = 1
            else:
                context.thread_type = "AUTO"
            yield container, stream

    def _choose(self, container: Any) -> Any:
        """Of the streams that are no cover art or thumbnails the one marked as the default, or the first."""
        still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        films = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & still]
        if films:
            return next((s for s in films if s.disposition & av.stream.Disposition.default), films[0])
        if not (container.streams.audio or container.streams.video):
            raise DamagedError
        held = ["sound"] * bool(container.streams.audio) + ["a cover picture"] * bool(container.streams.video)
        raise RedipruneError(
            f"{self.name} has no video frames but {' and '.join(held)}: give a film such as an MP4 file"
        )

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.limits.video_pixels:
            most = f"{self.limits.video_pixels / 1e6:g} million"
            raise RedipruneError(
                f"{self.name} has frames of {width} × {height} pixels: scale them to at most {most}, {_MORE}"
            )

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the next packet cannot be found
                self.lost += 1
                yield av.Packet()  # ends the decoding, as the end of the file would
                return

    def _decoded(self, stream: Any, packet: Any) -> list[av.VideoFrame]:
        try:
            return stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            if not self.careful:
                raise DamagedError from None
            self.lost += 1
            return []


def _declared_seconds(container: Any, stream: Any) -> float:
    """How long the file says that the film is; 0 where it does not."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or container.streams.audio:  # the sound may go on longer
        return 0
    return container.duration / av.time_base


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"{url} is another file")
