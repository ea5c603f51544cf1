"""Checkpoint → bundle: every stage traced, bound to its weights, checked and saved; the bundle complete or absent.

The graphs refer to the checkpoint's own weight files, hard-linked into the bundle, unless copies are asked for.
Work is done beside the bundle (`runtime.bundle.staging`): a stage finished there is not redone by the next run.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..graphs.families.base import image_side, patch_side
from ..graphs.language import cache_shape
from ..graphs.stages import Port, Stage
from ..runtime.backends.language_inputs import LanguageInputs
from ..runtime.bundle import (
    MANIFEST,
    PRECISIONS,
    WEIGHTS,
    Bundle,
    DecoderSpec,
    KeepDefaults,
    Manifest,
    ModalitySpec,
    Source,
    StageSpec,
    TensorSpec,
    file_sha256,
)
from ..runtime.bundle.lock import making
from ..runtime.bundle.staging import Staging, check_room, check_target
from ..runtime.errors import RedipruneError
from ..runtime.media.processor import Processor
from ..runtime.prompt import check_placeholder_ids
from .checkpoint.linked_files import Hashing, can_link, link
from .checkpoint.reader import Checkpoint, Skeleton
from .checkpoint.trial_picture import try_picture
from .checkpoint.weight_range import check_range
from .model_card import write_card
from .trace.check_graph import COMPARED, COMPARED_WHOLE, check_graph, check_stage
from .trace.replicate_layers import UnlikeLayersError, can_deepen, deepen
from .trace.tracer import trace

Progress = Callable[[str, str, float], None]  # stage, what is being done, fraction of the stage done

_PROCESSOR_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_NEWLINE = "onnx/newline.npy"


def export_bundle(
    checkpoint: Checkpoint,
    folder: str | Path,
    precision: str = "fp32",
    force: bool = False,
    check: bool = True,
    progress: Progress | None = None,
    copy: bool = False,
    without_language: bool = False,
) -> Bundle:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: the checkpoint.
        folder: the bundle to make. An up-to-date bundle there is left as it is.
        precision: "fp32" or "fp16", of weights and activations (selection is always float32).
        force: redo everything.
        check: run every graph beside its eager module at three sizes: large ones with their first layers only, and
            not those that are too large even then (`check_graph.COMPARED`); `StageSpec.compared` says which were. That a graph
            is valid ONNX is always checked.
        progress: told what is being done.
        copy: write the weights anew, converted and laid out as the engines read them, instead of referring to the
            checkpoint's files. Always so where these cannot be linked to, as on another file system.
        without_language: leave the language stage out, and all its weights: for a server whose answers are decoded
            elsewhere. The weights are copied then, as a checkpoint's files hold the decoder's too.

    Returns:
        The bundle, opened.

    Raises:
        RedipruneError: bad weights, weights that the precision cannot hold, no room, a folder that is something else, a
            graph that fails its check.
    """
    if precision not in PRECISIONS:
        raise RedipruneError(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    report = progress or (lambda stage, what, fraction: None)
    folder = check_target(folder)
    config = checkpoint.config
    ids = {
        kind: getattr(config, f"{kind}_token_id")
        for kind, modality in checkpoint.family.modalities(config).items()
        if modality.token is None
    }
    processor = Processor.load(checkpoint.folder)
    check_placeholder_ids(processor, ids)
    _check_hand_off(checkpoint, without_language)
    try_picture(processor, config.vision_config, "video" in checkpoint.family.modalities(config))
    with making(folder):
        skeleton = checkpoint.skeleton(precision)
        names = [stage.name for stage in skeleton.stages if not (without_language and stage.name == "language")]
        refer = not copy and not without_language and can_link(skeleton.weights.files, folder)
        with Hashing(_by_use(skeleton)) as hashing:  # beside the tracing
            if not force and (folder / MANIFEST).is_file():
                report("checkpoint", "hashing the weights", 0.0)
                current = _current(folder, checkpoint, checkpoint.source(hashing.result()), precision, refer, names)
                if current is not None:
                    return current
                _refuse_another_source(folder, checkpoint.source_name)
            report("checkpoint", "reading the weights", 0.0)
            check_range(skeleton.weights.needed, skeleton.dtype)
            key = {
                "source": checkpoint.source({}).model_dump(),
                "weights": hashing.stamps,
                "precision": precision,
                "tool": version("rediprune"),
                "check": check,
                "refer": refer,
                **({"stages": names} if without_language else {}),
            }
            staging = Staging(folder, key, force)
            stages = _stages(staging, skeleton, names, precision, check, refer, hashing, report)
            manifest = _manifest(skeleton, checkpoint.source(hashing.result()), precision, stages)
            _add_files(manifest, staging.folder, checkpoint.folder, skeleton)
            hashing.check_unchanged()
            staging.publish(manifest)
        bundle = Bundle.open(folder, verify=False)
        bundle.note_as_made()  # every hash in the manifest was just taken, or is of a file that has not changed since
        bundle.check_files()
    return bundle


def _stages(
    staging: Staging,
    skeleton: Skeleton,
    names: Sequence[str],
    precision: str,
    check: bool,
    refer: bool,
    hashing: Hashing,
    report: Progress,
) -> dict[str, StageSpec]:
    """Every stage of these names, those that an earlier run finished as they are."""
    wanted = [stage for stage in skeleton.stages if stage.name in names]
    specs = {stage.name: staging.finished(stage.name) for stage in wanted}
    todo = [stage for stage in wanted if specs[stage.name] is None]
    check_room(staging.folder, 0 if refer else sum(skeleton.parameter_bytes(stage) for stage in todo))
    stages = {}
    for stage in wanted:
        spec = specs[stage.name]
        if spec is None:
            spec = _export_stage(stage, staging.folder, skeleton, precision, check, refer, hashing, report)
            staging.finish(stage.name, spec)
        elif any(hashing.of(Path(name)) != sha for name, sha in spec.files.items() if name.startswith(f"{WEIGHTS}/")):
            raise RedipruneError(
                f"weight files of '{skeleton.checkpoint.folder}' changed since '{stage.name}' was exported; run the same "
                "command again with --force"
            )
        stages[stage.name] = spec
        report(stage.name, "done", 1.0)
    return stages


def _add_files(manifest: Manifest, folder: Path, checkpoint: Path, skeleton: Skeleton) -> None:
    """What belongs to no stage: processor files, the newline embedding of families that have one, the model card."""
    manifest.files = _copy_processor(checkpoint, folder)
    if skeleton.newline is not None:
        newline = folder / _NEWLINE
        np.save(newline, skeleton.weights.of(skeleton.newline).load().to(skeleton.dtype).numpy())
        manifest.newline = _NEWLINE
        manifest.files[_NEWLINE] = file_sha256(newline)
    write_card(folder, manifest)


def _export_stage(
    stage: Stage,
    folder: Path,
    skeleton: Skeleton,
    precision: str,
    check: bool,
    refer: bool,
    hashing: Hashing,
    report: Progress,
) -> StageSpec:
    path = folder / "onnx" / f"{stage.name}.onnx"
    data = path.with_name(path.name + ".data")
    try:
        report(stage.name, "tracing", 0.0)
        model, shallow = _trace(stage, skeleton)
        compared = False
        if check and shallow is not None and skeleton.parameters(stage) > COMPARED_WHOLE:
            _save(shallow, skeleton.shallow, path, refer, report)
            compared = _compare(skeleton.shallow, path, report)
        used = _save(model, skeleton, path, refer, report)
        if check and not compared:
            compared = _compare(skeleton, path, report)
        report(stage.name, "hashing", 0.95)
    except BaseException:  # Ctrl-C too: an unfinished stage leaves nothing behind
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        raise
    files = {f"onnx/{file.name}": file_sha256(file) for file in (path, data) if file.is_file()}
    files |= {f"{WEIGHTS}/{file.name}": hashing.of(file) for file in used}
    return StageSpec(
        file=f"onnx/{path.name}",
        files=files,
        precision=precision,
        inputs=[_tensor(port, skeleton.dtype) for port in stage.inputs],
        outputs=[_tensor(port, skeleton.dtype) for port in stage.outputs],
        weight_bytes=skeleton.parameter_bytes(stage),
        compared=compared,
    )


def _by_use(skeleton: Skeleton) -> list[Path]:
    """The checkpoint's files in the order in which the stages refer to them, so that none waits for another's hashes."""
    weights = skeleton.weights
    used = [weights.of(parameter).file for stage in skeleton.stages for parameter in stage.module.parameters()]
    return list(dict.fromkeys([*used, *weights.files]))


def _trace(stage: Stage, skeleton: Skeleton) -> tuple[ir.Model, ir.Model | None]:
    """A stage's graph and, where it was made of one with fewer layers, that one."""
    if can_deepen(stage):
        shallow = trace(skeleton.shallow.stage(stage.name), skeleton.dtype)
        with suppress(UnlikeLayersError):
            return deepen(shallow, stage), shallow
    return trace(stage, skeleton.dtype), None


def _save(model: ir.Model, skeleton: Skeleton, path: Path, refer: bool, report: Progress) -> list[Path]:
    """Bind a stage's graph to its weights, save it and see that it is valid; returns the files it refers to."""
    stage = skeleton.stage(path.stem)
    place = PurePosixPath(WEIGHTS).name if refer else None
    used = skeleton.weights.bind(model, stage.module, skeleton.buffers, skeleton.dtype, place)
    link(used, path.parent / PurePosixPath(WEIGHTS).name)

    def written(tensor: Any, info: Any) -> None:
        report(stage.name, "writing weights", 0.4 + 0.3 * info.index / max(info.total, 1))

    if refer:
        ir.save(model, path)
    else:
        data = path.with_name(path.name + ".data")
        ir.save(model, path, external_data=data.name, callback=written)
        if not data.stat().st_size:  # a stage without weights
            data.unlink()
    check_graph(stage, path)
    return used


def _compare(skeleton: Skeleton, path: Path, report: Progress) -> bool:
    """Run a saved graph beside its eager module; returns False where that would take too long."""
    stage = skeleton.stage(path.stem)
    if skeleton.parameters(stage) > COMPARED:
        return False
    report(stage.name, "checking against PyTorch", 0.7)
    check_stage(stage, path, skeleton)
    return True


def _tensor(port: Port, dtype: torch.dtype) -> TensorSpec:
    name = str(port.dtype or dtype).removeprefix("torch.")
    return TensorSpec(name=port.name, dtype=name, shape=list(port.shape))


def _manifest(skeleton: Skeleton, source: Source, precision: str, stages: dict[str, StageSpec]) -> Manifest:
    config, family = skeleton.checkpoint.config, skeleton.checkpoint.family
    text, vision = config.text_config, config.vision_config
    modalities = family.modalities(config)
    _, heads, _, width = cache_shape(text, 1, 1)
    features = stages["select"].inputs[0].shape[2]
    assert isinstance(features, int)
    return Manifest(
        tool_version=version("rediprune"),
        source=source,
        family=family.MODEL_TYPE,
        family_name=family.NAME,
        tower=vision.model_type,
        language_model=text.model_type,
        precision=precision,
        image_size=0 if any(m.dynamic for m in modalities.values()) else image_side(vision),
        patch_size=patch_side(vision),
        channels=features,
        decoder=DecoderSpec(
            layers=text.num_hidden_layers,
            kv_heads=heads,
            head_width=width,
            width=text.hidden_size,
            vocabulary=text.vocab_size,
            max_positions=text.max_position_embeddings,
        ),
        defaults=KeepDefaults(positions="original" if _axes(stages.get("language")) > 1 else "compact"),
        modalities={
            kind: ModalitySpec(
                stage=m.stage,
                output=m.output,
                rows=m.rows,
                columns=m.columns,
                leading=m.leading,
                tiled=m.tiled,
                dynamic=m.dynamic,
                rows_output=m.rows_output,
                mixed_output=m.mixed_output,
                placeholder=getattr(config, f"{m.token or kind}_token_id"),
            )
            for kind, m in modalities.items()
        },
        pinpoints=[tuple(p) for p in getattr(config, "image_grid_pinpoints", None) or []],
        stages=stages,
    )


def _axes(language: StageSpec | None) -> int:
    return 1 if language is None else max(LanguageInputs(language).axes, 1)


def _copy_processor(source: Path, folder: Path) -> dict[str, str]:
    """Copy tokenizer, image processor, chat template and generation config; returns their hashes."""
    target = folder / "processor"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in processor_files(source):
        shutil.copyfile(file, target / file.name)
    return {f"processor/{file.name}": file_sha256(file) for file in sorted(target.iterdir())}


def processor_files(source: Path) -> list[Path]:
    """What a checkpoint's tokenizer, processor and configs are read from: all but the weights and their index."""
    found = {file for pattern in _PROCESSOR_FILES for file in source.glob(pattern)}
    return sorted(f for f in found if not f.name.endswith(".index.json") and not f.name.startswith("."))


def _refuse_another_source(folder: Path, name: str) -> None:
    raw = _read(folder / MANIFEST) or {}
    there = raw.get("source", {}).get("name") if isinstance(raw, dict) else None
    if there is not None and there != name:
        raise RedipruneError(f"'{folder}' is a bundle of '{there}'; choose another folder, or replace it with --force")


def _check_hand_off(checkpoint: Checkpoint, without_language: bool) -> None:
    """Refuse a bundle without a language stage whose kept tokens a decoder elsewhere could not take."""
    if without_language and checkpoint.config.model_type != "llava":
        raise RedipruneError(
            f"--stages leaves the language stage out, and kept tokens of {checkpoint.family.NAME} cannot be handed to a "
            "decoder elsewhere: this was run with LLaVA-1.5 only; export all stages"
        )


def _current(
    folder: Path, checkpoint: Checkpoint, source: Source, precision: str, refer: bool, names: Sequence[str]
) -> Bundle | None:
    """The bundle in `folder`, if it is whole and was made from the same source in the same way."""
    try:
        bundle = Bundle.open(folder, remember=False)
    except RedipruneError:
        return None  # damaged: made anew
    processor = {f"processor/{file.name}": file_sha256(file) for file in processor_files(checkpoint.folder)}
    if processor != {name: sha for name, sha in bundle.manifest.files.items() if name.startswith("processor/")}:
        return None
    made = bundle.manifest
    same = made.source == source and made.precision == precision and made.refers == refer
    same = same and list(made.stages) == list(names)
    return bundle if same and made.tool_version == version("rediprune") else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
