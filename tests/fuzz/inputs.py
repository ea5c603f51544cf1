"""The kinds of input, each with good samples, and what is done with a bad one: the exit code that it ends with."""

import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from rediprune.calibration.data import open_data
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.checkpoint.trial_picture import try_picture
from rediprune.runtime.__main__ import main
from rediprune.runtime.bundle import MANIFEST
from rediprune.runtime.bundle.seal import seal
from rediprune.runtime.errors import RedipruneError
from rediprune.runtime.media.processor import Processor
from rediprune.runtime.prompt import check_placeholder_ids, prompt_ids

from .mutations import mutate_bytes, mutate_json, mutate_text

KINDS = ("picture", "clip", "manifest", "config", "weights", "dataset")

_CONFIGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)


@dataclass
class Subjects:
    """What inputs are given to.

    Attributes:
        checkpoint: a tiny one of a family that answers about images and videos.
        bundle: its bundle.
        scratch: an empty folder for one input at a time.
    """

    checkpoint: Path
    bundle: Path
    scratch: Path

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The same small picture in every format, by suffix."""
        generator = np.random.default_rng(0)
        image = Image.fromarray(generator.integers(0, 255, (48, 64, 3), np.uint8))
        made = {}
        exif = Image.Exif()
        exif[0x112] = 6
        for suffix, options in (
            ("jpg", {"exif": exif}),
            ("png", {}),
            ("webp", {}),
            ("gif", {}),
            ("bmp", {}),
            ("tif", {"compression": "tiff_lzw"}),
            ("ppm", {}),
        ):
            buffer = io.BytesIO()
            image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
            made[suffix] = buffer.getvalue()
        grey = io.BytesIO()
        Image.fromarray(generator.integers(0, 65535, (48, 64), np.uint16)).save(grey, "PNG")
        return made | {"grey.png": grey.getvalue()}

    @cached_property
    def clips(self) -> dict[str, bytes]:
        """The same short film in every container, by suffix."""
        made = {}
        for suffix, codec, pixels in (
            ("mp4", "libx264", "yuv420p"),
            ("mkv", "libx264", "yuv420p"),
            ("webm", "libvpx-vp9", "yuv420p"),
            ("avi", "mpeg4", "yuv420p"),
            ("mov", "mjpeg", "yuvj420p"),
            ("ts", "mpeg2video", "yuv420p"),
        ):
            buffer = io.BytesIO()
            with av.open(buffer, "w", format={"mkv": "matroska", "ts": "mpegts"}.get(suffix, suffix)) as container:
                stream: Any = container.add_stream(codec, rate=10)
                stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
                for number in range(8):
                    frame = np.full((48, 64, 3), 20 * number, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
                container.mux(stream.encode())
            made[suffix] = buffer.getvalue()
        return made


def exit_code(kind: str, rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    """Make a bad input and give it to what reads it; the input stays in the scratch folder.

    Returns:
        The exit code, and the last line of what was said.
    """
    return {
        "picture": _picture,
        "clip": _clip,
        "manifest": _manifest,
        "config": _config,
        "weights": _weights,
        "dataset": _dataset,
    }[kind](rng, subjects)


def command(*words: object) -> tuple[int, str]:
    """The command line in this process, through its own entry point."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    argv, sys.argv = sys.argv, ["rediprune", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code: Any = 0
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.argv = argv
    return int(code or 0), _last_line(err)


def call(action: Callable[[], object]) -> tuple[int, str]:
    """The exit code with which the command line would end after this (`runtime.cli.app`)."""
    try:
        action()
    except (RedipruneError, MemoryError) as error:
        return 2, str(error)
    except OSError as error:
        return (2 if error.filename is not None else 3), repr(error)
    except Exception as error:
        return 3, repr(error)
    return 0, ""


def _last_line(stream: io.TextIOWrapper) -> str:
    stream.flush()
    lines = stream.buffer.getvalue().decode(errors="replace").strip().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    return lines[-1] if lines else ""


def _picture(rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    suffix = rng.choice(sorted(subjects.pictures))
    file = subjects.scratch / f"input.{suffix}"
    file.write_bytes(mutate_bytes(rng, subjects.pictures[suffix]))
    return command("run", subjects.bundle, "--image", file, "--prompt", "What?", "--max-new-tokens", 1)


def _clip(rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    suffix = rng.choice(sorted(subjects.clips))
    file = subjects.scratch / f"input.{suffix}"
    file.write_bytes(mutate_bytes(rng, subjects.clips[suffix]))
    words = ("--video", file, "--frames", 2, "--prompt", "What?", "--max-new-tokens", 1)
    return command("run", subjects.bundle, *words)


def _linked(source: Path, target: Path, apart: str) -> bytes:
    """A copy of a folder by hard links but for one file; returns what that holds."""
    shutil.copytree(source, target, copy_function=os.link)
    content = (target / apart).read_bytes()
    (target / apart).unlink()
    return content


def _manifest(rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    bundle = subjects.scratch / "bundle"
    text = _linked(subjects.bundle, bundle, MANIFEST)
    if rng.random() < 0.2:
        (bundle / MANIFEST).write_bytes(mutate_bytes(rng, text))
    else:  # sealed anew, as by a hand that knows how
        document = mutate_json(rng, json.loads(text))
        if isinstance(document, dict):
            document["digest"] = seal(document)
        (bundle / MANIFEST).write_bytes(json.dumps(document).encode(errors="replace"))
    code, said = command("inspect", bundle)
    return (code, said) if code else command("run", bundle, "--prompt", "What?", "--max-new-tokens", 1)


def _read_checkpoint(folder: Path) -> None:
    """All of an export but the tracing, and all that a prompt and a picture need of the processor's files."""
    checkpoint = Checkpoint.open(str(folder))
    processor = Processor.load(folder)
    kinds = checkpoint.family.modalities(checkpoint.config)
    check_placeholder_ids(processor, {kind: getattr(checkpoint.config, f"{kind}_token_id") for kind in kinds})
    _ = checkpoint.skeleton("fp32").weights
    prompt_ids(processor, "What is this?", 1, 0, True)
    try_picture(processor, checkpoint.config.vision_config, "video" in kinds)


def _config(rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    folder = subjects.scratch / "checkpoint"
    there = [name for name in _CONFIGS if (subjects.checkpoint / name).is_file()]
    name = rng.choice(["config.json", *there])
    text = _linked(subjects.checkpoint, folder, name)
    (folder / name).write_bytes(mutate_text(rng, json.loads(text)))
    return call(lambda: _read_checkpoint(folder))


def _weights(rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    folder = subjects.scratch / "checkpoint"
    name = "model.safetensors"
    data = _linked(subjects.checkpoint, folder, name)
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5:
        header = mutate_text(rng, json.loads(data[8 : 8 + length]))
        data = len(header).to_bytes(8, "little") + header + data[8 + length :]
    else:
        data = mutate_bytes(rng, data[: 8 + length]) + data[8 + length :]
    (folder / name).write_bytes(data)
    return call(lambda: _read_checkpoint(folder))


def _dataset(rng: random.Random, subjects: Subjects) -> tuple[int, str]:
    (subjects.scratch / "a.png").write_bytes(subjects.pictures["png"])
    (subjects.scratch / "b.mp4").write_bytes(subjects.clips["mp4"])
    lines = [
        {"image": "a.png", "question": "What?", "answer": "A cat", "kind": "cats", "match": "exact"},
        {"video": "b.mp4", "question": "Which?", "answer": "B", "match": "option"},
    ]
    file = subjects.scratch / "data.jsonl"
    file.write_bytes(b"\n".join(mutate_text(rng, line) for line in lines * rng.randint(1, 3)))
    return call(lambda: open_data(file, 4, 0, True, subjects.scratch))
