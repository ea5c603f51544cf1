"""The task's samples as a folder of media files with a JSONL that any evaluation can read."""

import json
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from ...runtime.bundle.atomic_file import replacing
from .clips import FILE_FRAMES, RATE, Clip
from .drawn_task import samples
from .scenes import SIDE, draw, draw_things


def write_set(folder: Path, split: str, seed: int = 0, images: int = 100, clips: int = 25) -> Path:
    """Write a dataset folder: PNG and mp4 files, and `data.jsonl` with one sample a line.

    A line is {"image" or "video": file name, "question", "answer", "kind"}; several lines may share a file.
    Media that are already there are kept, so an interrupted run goes on where it stopped.

    Args:
        folder: made if missing.
        split: a key of SPLITS.
        seed: with the split and the number, decides each picture or clip.
        images, clips: how many of each; about QUESTIONS_EACH questions are asked of each.

    Returns:
        The path of `data.jsonl`, written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample in samples(split, seed, images, clips):
        is_clip = isinstance(sample.subject, Clip)
        name = f"{split}-{sample.number:05d}." + ("mp4" if is_clip else "png")
        if not (folder / name).exists():
            with replacing(folder / name) as part:  # a file under its own name is always whole
                if isinstance(sample.subject, Clip):
                    write_clip(sample.subject, part)
                else:
                    Image.fromarray(draw(sample.subject)).save(part, "PNG")
        line = {"video" if is_clip else "image": name}
        line |= {"question": sample.question, "answer": sample.answer, "kind": sample.kind}
        lines.append(json.dumps(line))
    path = folder / "data.jsonl"
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n")
    return path


def write_clip(clip: Clip, path: Path) -> None:
    """Write the clip as H.264 in an mp4 file of FILE_FRAMES frames, with a key frame every four."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 4
        stream.codec_context.time_base = Fraction(1, RATE)
        for i in range(FILE_FRAMES):
            picture = draw_things(clip.background, clip.things(i / (FILE_FRAMES - 1)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
