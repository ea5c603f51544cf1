"""The cases of a bundle on disk, in `.<bundle>.reference/` beside it: eager PyTorch runs once, then they are read.

A file is named after everything that its content depends on: the checkpoint's and the processor's hashes, the
precision, the content of the picture and of the video, and the requests. It is one `.npz` without pickles:

    index                           JSON text: {"stages": {stage: [{"label", "real", "feed", "expected"}]},
                                    "requests": [{"label", "options", "image", "video", "token_ids", "kept"}]}
                                    where feed and expected list the names of arrays, image is how many pictures, video
                                    whether a clip is asked about, and kept is the number of arrays
    stages/STAGE/NUMBER/feed/NAME   and …/expected/NAME, …/noisy/NAME: an input, an output and its noisy twin
    requests/NUMBER/logits          [tokens, V] float32
    requests/NUMBER/kept/NUMBER     [F, K] int64

It is written to a temporary file and renamed, so that it is whole or absent; one that is damaged is made anew.
"""

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle import Bundle
from ...runtime.media.processor import load_image
from .cases import QUESTION, Arrays, Cases, EndToEndCase, StageCase, StageInput
from .eager_cases import CLIP_KEEP, FRAMES, KEEPS, NEW_TOKENS, make_cases

_FORMAT = 5
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def stored_cases(bundle: Bundle, image: Any, video: Any, refresh: bool = False) -> Cases:
    """The cases of a bundle, from disk where they were computed before.

    Args:
        bundle: the bundle.
        image, video: what `load_image` and `load_video` take.
        refresh: run eager PyTorch in any case.

    Raises:
        RedipruneError: eager PyTorch must run and cannot (see `make_cases`).
    """
    folder = bundle.folder.parent / f".{bundle.folder.name}.reference"
    path = folder / f"{_key(bundle, image, video)}.npz"
    if path.is_file() and not refresh:
        with suppress(*_DAMAGED):
            return load_cases(path, image, video)
    cases = make_cases(bundle, image, video)
    with suppress(OSError):  # a place that cannot be written to: they are made anew each time
        folder.mkdir(exist_ok=True)
        save_cases(path, cases)
    return cases


def _key(bundle: Bundle, image: Any, video: Any) -> str:
    manifest = bundle.manifest
    asked = [_FORMAT, QUESTION, KEEPS, CLIP_KEEP, NEW_TOKENS, FRAMES]
    settings = [*asked, manifest.float_precision, list(manifest.stages)]
    made_of = [manifest.source.model_dump(), dict(sorted(manifest.files.items()))]
    digest = hashlib.sha256(json.dumps([settings, made_of]).encode())
    digest.update(_picture_content(image))
    digest.update(_video_content(video))
    return digest.hexdigest()[:16]


def _picture_content(image: Any) -> bytes:
    """Hash of what the model is shown of a picture, whatever it came from: a path, bytes, an image or an array."""
    picture = load_image(image)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()


def _video_content(video: Any) -> bytes:
    data = video if isinstance(video, bytes) else Path(video).read_bytes()
    return hashlib.sha256(data).digest()


def save_cases(path: Path, cases: Cases) -> None:
    """Write cases, whole or not at all.

    Raises:
        OSError: there is no room, or the folder cannot be written to.
    """
    arrays: Arrays = {}
    index: dict[str, Any] = {"stages": {}, "requests": []}
    for stage, stage_cases in cases.stages.items():
        index["stages"][stage] = []
        for number, case in enumerate(stage_cases):
            parts = {"feed": case.input.feed, "expected": case.expected, "noisy": case.noisy}
            for part, named in parts.items():
                arrays |= {f"stages/{stage}/{number}/{part}/{name}": array for name, array in named.items()}
            names = {"feed": list(case.input.feed), "expected": list(case.expected)}
            index["stages"][stage].append({"label": case.input.label, "real": case.input.real} | names)
    for number, request in enumerate(cases.requests):
        arrays[f"requests/{number}/logits"] = request.logits
        arrays |= {f"requests/{number}/kept/{at}": kept for at, kept in enumerate(request.kept)}
        index["requests"].append(
            {
                "label": request.label,
                "options": request.options,
                "image": len(request.images),
                "video": bool(request.videos),
                "token_ids": request.token_ids,
                "kept": len(request.kept),
            }
        )
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            np.savez_compressed(file, allow_pickle=False, index=np.array(json.dumps(index)), **arrays)
        except BaseException:  # Ctrl-C too
            file.close()
            os.unlink(file.name)
            raise
    os.replace(file.name, path)


def load_cases(path: Path, image: Any, video: Any) -> Cases:
    """Read what `save_cases` wrote; `image` and `video` are what its requests were about.

    Raises:
        OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error: the file is damaged.
    """
    with np.load(path) as stored:
        index = json.loads(str(stored["index"]))

        def stage_case(place: str, entry: dict[str, Any]) -> StageCase:
            feed = {name: stored[f"{place}/feed/{name}"] for name in entry["feed"]}
            expected, noisy = (
                {name: stored[f"{place}/{part}/{name}"] for name in entry["expected"]} for part in ("expected", "noisy")
            )
            return StageCase(StageInput(entry["label"], feed, entry["real"]), expected, noisy)

        stages = {
            stage: [stage_case(f"stages/{stage}/{number}", entry) for number, entry in enumerate(entries)]
            for stage, entries in index["stages"].items()
        }
        requests = [
            EndToEndCase(
                entry["label"],
                entry["options"],
                [image] * entry["image"],
                [video] if entry["video"] else [],
                entry["token_ids"],
                stored[f"requests/{number}/logits"],
                [stored[f"requests/{number}/kept/{at}"] for at in range(entry["kept"])],
            )
            for number, entry in enumerate(index["requests"])
        ]
    return Cases(stages, requests)
