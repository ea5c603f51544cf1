"""The measurement: contenders take turns, figures are medians with their spread."""

import hashlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ...graphs.selection.counts import num_kept
from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from ...runtime.machine import processes_waiting, processor_name
from ...runtime.media.preprocess import Processor, load_image, load_video
from ...runtime.prompt import render_prompt
from ...runtime.timing import TIMED_STAGES
from ..checkpoint.reader import Checkpoint
from ..validate.sample_media import sample_clip, sample_picture
from .contenders import Contender, TurnError, our_contenders, peer_contenders, take_turn
from .multiply_adds import multiply_adds
from .roofline import ceilings
from .scaling import growth

QUESTION = "Look at the picture closely and say in one sentence what is left of the person, and in which colours it is."
REPEATS = 2  # of every request within a turn
SCHEMA = 2

Document = dict[str, Any]


def bench(
    folders: Sequence[Path],
    *,
    image: Path | None = None,
    video: Path | None = None,
    frames: int = 8,
    keeps: Sequence[float] = (1.0, 0.25, 0.15, 0.1),
    backends: Sequence[str] = ("ort",),
    peers: Sequence[str] = (),
    runs: int = 3,
    threads: int = 0,
    new_tokens: int = 9,
    limit: float = 600,
    grow: bool = False,
    peers_python: str = sys.executable,
) -> Document:
    """Measure bundles of one checkpoint, and what a user would take instead.

    Args:
        folders: bundles; their checkpoint must be at hand where peers are asked for.
        image, video: what to ask about; neither is a made picture. frames: of the video.
        keeps: keep ratios. backends: for every bundle. peers: keys of `contenders.PEERS`.
        runs: turns of every contender, each a fresh process that answers every request `REPEATS` times.
        threads: of every contender; 0 is all cores.
        new_tokens: to answer with.
        limit: seconds that a turn may take; a contender that takes longer or fails is left out, and said so.
        grow: measure how the first bundle's cost grows, too.
        peers_python: interpreter of the peers that have an environment of their own (`make bench-peers`). What they
            read is made of the checkpoint once, in `peers/` beside the first bundle.

    Returns:
        The document: machine, versions, model, ceilings, for every contender and keep medians and spread (`decoders`
        for decoders alone), speed-ups.

    Raises:
        RedipruneError: a bundle, its checkpoint or a name cannot be used, or no bundle runs on any backend.
    """
    threads = threads or os.cpu_count() or 1
    busy = processes_waiting()
    bundles = [Bundle.open(folder) for folder in folders]
    first = bundles[0].manifest
    if any(bundle.manifest.source != first.source for bundle in bundles):
        raise RedipruneError("the bundles are not of one checkpoint; bench those of another apart")
    kind = "image" if video is None else "video"
    if kind not in first.modalities:
        raise RedipruneError(f"{first.family_name} answers about images only; leave --video out")
    if first.modalities[kind].tiled:
        raise RedipruneError(f"{first.family_name} sees images in tiles, which are not pruned; give a --video")
    checkpoint = Checkpoint.open(first.source.name, first.source.revision)
    patches = first.modalities[kind].patches
    count = frames if kind == "video" else 1
    prompt = _prompt_tokens(bundles[0], kind)
    with tempfile.TemporaryDirectory() as folder:
        medium = _medium(image, video, Path(folder))
        with Console(stderr=True).status("making what the peers read"):
            made = _forms(bundles[0])
            peer_list, absent = peer_contenders(peers, checkpoint.folder, keeps, threads, made, peers_python)
        contenders = our_contenders(bundles, backends, keeps, threads) + peer_list
        request = {
            "question": QUESTION,
            "images": [str(medium)] if kind == "image" else [],
            "videos": [str(medium)] if kind == "video" else [],
            "frames": frames,
            "new_tokens": new_tokens,
        }
        turns: dict[str, list[Document]] = {contender.name: [] for contender in contenders}
        best: dict[str, float] = {}
        for _ in track(range(runs), "measuring", console=Console(stderr=True), transient=True):
            best = {key: max(value, best.get(key, 0.0)) for key, value in ceilings(threads).items()}
            for contender in contenders:
                if contender.name in absent:
                    continue
                requests = [
                    request | {"keep": keep, "positions": prompt + count * num_kept(patches, keep)}
                    for keep in contender.keeps
                ]
                try:
                    turns[contender.name].append(take_turn(contender, requests, REPEATS, limit))
                except TurnError as error:
                    absent[contender.name] = str(error)
            if all(contender.name in absent for contender in contenders if contender.ours):
                raise RedipruneError(f"no bundle runs on {', '.join(backends)}: {absent[contenders[0].name]}")
        present = [contender for contender in contenders if contender.name not in absent]
        grown = growth(present[0], bundles[0], request, kind, limit) if grow else None
    rows = [row for contender in present for row in _rows(contender, turns[contender.name])]
    skeleton = checkpoint.skeleton("fp32")
    work = {
        f"{keep:g}": multiply_adds(skeleton, kind, count, num_kept(patches, keep), prompt)
        for keep in sorted({row["keep"] for row in rows})
    }
    for row in rows:
        _achieve(row, work[f"{row['keep']:g}"])
    whole = [row for row in rows if "time_to_first_token" in row]
    decoders = [row for row in rows if "time_to_first_token" not in row]
    packages = ("torch", "transformers", "onnxruntime", "numpy", "rediprune", "openvino")
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor_name(), "threads": threads, "load_before": busy},
        "versions": {name: _version(name) for name in packages if _version(name)}
        | {"python": platform.python_version()},
        "model": {
            "family": first.family,
            "kind": kind,
            "frames": count,
            "visual_tokens": count * patches,
            "prompt_tokens": prompt,
            "parameters": sum(p.numel() for p in skeleton.model.parameters()),
        },
        "runs": runs * REPEATS,
        "turns": runs,
        "ceilings": best,
        "multiply_adds": work,
        "rows": whole,
        "decoders": decoders,
        "speed_up": _speed_ups(whole, {contender.name for contender in present if contender.ours}),
        "absent": absent,
        **({"growth": grown} if grown is not None else {}),
    }


def _forms(bundle: Bundle) -> Path:
    """Folder for a checkpoint in the forms that peers want: named after its content, so that another's never serves."""
    source = bundle.manifest.source
    digest = hashlib.sha256("".join([source.config_sha256, *sorted(source.weights.values())]).encode()).hexdigest()
    return bundle.folder.resolve().parent / "peers" / f"{Path(source.name).name}-{digest[:12]}"


def _medium(image: Path | None, video: Path | None, made: Path) -> Path:
    """The file that every contender is shown, after a look whether it can be."""
    if video is not None:
        load_video(video, 1)
        return video.resolve()
    if image is not None:
        load_image(image)
        return image.resolve()
    sample_picture().save(made / "sample.png")
    (made / "sample.mp4").write_bytes(sample_clip())
    return made / "sample.png"


def _rows(contender: Contender, turns: list[Document]) -> list[Document]:
    """One row per keep ratio: medians over all turns and repeats."""
    rows = []
    for at, keep in enumerate(contender.keeps):
        taken = [answer for turn in turns for answer in turn["answers"][at]]
        # Without pruning `select` is a look at the ratio.
        named = [key for key in TIMED_STAGES if key in taken[0] and (key != "select" or keep < 1)]
        stages = {key: _median(taken, key) for key in named}
        row = {
            "contender": contender.name,
            "ours": contender.ours,
            "precision": contender.precision,
            "keep": keep,
            "stages": stages,
            "decode_token": _median(taken, "decode_token"),
            "end_to_end": _median(taken, "total"),
            "start_up": statistics.median(turn["start_up"] for turn in turns),
            "peak_memory_bytes": max(turn["peak_memory"] for turn in turns),
            "disk_bytes": contender.disk,
        }
        if contender.whole:
            first = [answer["time_to_first_token"] for answer in taken]
            row |= {
                "time_to_first_token": statistics.median(first),
                "fastest": min(first),
                "slowest": max(first),
                "selector_share": stages.get("select", 0.0) / statistics.median(first),
            }
        if row["decode_token"]:
            row["tokens_per_second"] = 1 / row["decode_token"]
            row["decode_gb_per_second"] = contender.decoder / row["decode_token"] / 1e9
        rows.append(row)
    return rows


def _median(taken: list[Document], key: str) -> float:
    return statistics.median(answer[key] for answer in taken)


def _achieve(row: Document, work: dict[str, int]) -> None:
    """Operations per second of the stages that are matrix products; a multiply-add is two."""
    stages = {"vision": "vision", "prefill": "prefill"}
    row["gflops"] = {
        name: 2 * work[of] / row["stages"][name] / 1e9 for name, of in stages.items() if row["stages"].get(name)
    }


def _speed_ups(rows: list[Document], ours: set[str]) -> Document:
    """Ours at a keep ratio → peer → how many times sooner the first token comes, and how many times faster decoding is."""
    found: Document = {}
    for row in rows:
        if row["contender"] not in ours:
            continue
        found[f"{row['contender']}, keep {row['keep']:g}"] = {
            f"{peer['contender']}, keep {peer['keep']:g}": {
                "first_token": peer["time_to_first_token"] / row["time_to_first_token"],
                "decode": peer["decode_token"] / row["decode_token"] if row["decode_token"] else 0.0,
            }
            for peer in rows
            if peer["contender"] not in ours
        }
    return found


def _prompt_tokens(bundle: Bundle, kind: str) -> int:
    processor = Processor.load(bundle.path("processor"))
    text = render_prompt(processor, QUESTION, kind == "image", kind == "video")
    return len(processor.encode(text)) - 1


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return ""
