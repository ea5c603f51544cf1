"""TensorRT and TensorRT-RTX engines of a bundle's stages, each built in a process of its own.

An engine is written beside its place and renamed when it is whole; the manifest names it from then on. One whose
graph, profile, targets and library are unchanged is not built again.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.backends.gpu import compute_capability
from ...runtime.backends.nvinfer import LIBRARIES, find_plugin, load_library
from ...runtime.backends.session import runs_on
from ...runtime.bundle import Bundle, EngineSpec, file_sha256
from ...runtime.bundle.atomic_file import replacing
from ...runtime.bundle.lock import changing
from ...runtime.bundle.verified_files import cache_folder
from ...runtime.errors import RedipruneError
from ...runtime.memory import available_memory
from ..exporter import Progress
from .build_memory import build_estimate
from .shape_profiles import Profile, profile_of, ranges
from .tensorrt_worker import Job, Outcome

DEFAULT_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")  # of TensorRT-RTX, unless told otherwise


@dataclass
class StageBuild:
    """What one engine took: seconds and peak memory (bytes) of its build, its size (bytes)."""

    seconds: float
    peak_memory: int
    size: int
    reused: bool = False


@dataclass
class EngineBuild:
    """The engines as the manifest has them, and what each took."""

    engines: EngineSpec
    stages: dict[str, StageBuild] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        stages = {name: asdict(stage) for name, stage in self.stages.items()}
        return self.engines.model_dump() | {"builds": stages}


def build_tensorrt(
    folder: str | Path,
    backend: str = "tensorrt-rtx",
    *,
    targets: Iterable[str] = (),
    profile: Iterable[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> EngineBuild:
    """Build an engine of every stage and record it in the manifest.

    Args:
        folder: the bundle.
        backend: "tensorrt", for the GPU present, or "tensorrt-rtx", which needs none.
        targets: compute capabilities to build for, e.g. "sm_89" (TensorRT-RTX only); none is `DEFAULT_TARGETS`.
        profile: ranges other than the model's own, e.g. "kept=1:64:576" (`shape_profiles.ranges`).
        force: build finished engines again.
        progress: called with the stage, what is being done and the share that is done.

    Raises:
        RedipruneError: a bad profile or target, no package, GPU or memory, a graph that the library refuses, an
            engine of other precisions than the graph's.
    """
    report = progress or (lambda stage, what, fraction: None)
    with changing(folder) as bundle:
        return _build(bundle, backend, list(targets), profile, force, report)


def _build(
    bundle: Bundle, backend: str, targets: list[str], profile: Iterable[str], force: bool, report: Progress
) -> EngineBuild:
    manifest = bundle.manifest
    sizes = ranges(manifest, profile)
    targets = _targets(bundle, backend, targets)
    library = LIBRARIES[backend]
    version = load_library(backend).__version__
    plugin = find_plugin(backend)
    place = bundle.path(EngineSpec.file(backend, "")).parent
    place.mkdir(parents=True, exist_ok=True)
    for leftover in place.glob(".*.new"):  # of a build that was ended
        leftover.unlink()

    old = manifest.engines.get(backend)
    engines = EngineSpec(library=library.title, version=version, stages=[], compute_capability=targets)
    build = EngineBuild(engines)
    profiles = {
        name: profile_of(name, spec, sizes)
        for name, spec in manifest.stages.items()
        if runs_on(backend, name) == backend
    }
    for stage, wanted in profiles.items():
        if old is not None and not force and _is_current(bundle, backend, stage, wanted, engines, old):
            _keep(engines, old, backend, stage)
            size = bundle.path(EngineSpec.file(backend, stage)).stat().st_size
            build.stages[stage] = StageBuild(0.0, 0, size, reused=True)
            report(stage, "up to date", 1.0)
    todo = [stage for stage in profiles if stage not in build.stages]
    _check_memory(bundle, todo)
    for stage in todo:
        spec, file = manifest.stages[stage], EngineSpec.file(backend, stage)
        began = time.perf_counter()
        with replacing(bundle.path(file)) as engine:
            job = Job(
                library.module,
                stage,
                str(bundle.path(spec.file)),
                str(engine),
                profiles[stage],
                targets if backend == "tensorrt-rtx" else [],
                plugin if stage == "select" else None,
                _timing_cache(version, targets) if backend == "tensorrt" else None,
            )
            outcome = _run(job, f"{library.title} {version}", report)
            report(stage, "hashing", 0.99)
            sha = file_sha256(engine)
        engines.stages.append(stage)
        engines.precision[stage] = outcome.precision or spec.precision  # a stage that only copies has no other
        engines.profile[stage] = outcome.profile
        engines.source_sha256[stage] = spec.sha256
        engines.files[file] = sha
        build.stages[stage] = StageBuild(time.perf_counter() - began, outcome.peak_memory, outcome.size)
        manifest.engines[backend] = engines
        bundle.write_manifest()
        report(stage, "built", 1.0)
    return build


def _timing_cache(version: str, targets: Sequence[str]) -> str | None:
    """Where is kept how long kernels took: with the user's caches, for a build reads it and it is no part of the bundle."""
    path = cache_folder() / "tensorrt" / f"timing-{version}-{'-'.join(targets)}.cache"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # kernels are timed anew
    return str(path)


def _targets(bundle: Bundle, backend: str, targets: list[str]) -> list[str]:
    """The GPUs to build for: those asked for, or else the usual ones that take what the bundle holds."""
    made = bundle.manifest.calibration
    if backend == "tensorrt":
        present = compute_capability(backend, "--backend tensorrt-rtx builds and --backend ort answers")
        if targets and targets != [present]:
            raise RedipruneError(
                f"TensorRT builds for the GPU present, which is {present}; leave --target out, or cross-compile with "
                "--backend tensorrt-rtx"
            )
        chosen = [present]
    else:
        known = LIBRARIES[backend].targets
        unknown = [target for target in targets if target not in known]
        if unknown:
            raise RedipruneError(f"target '{unknown[0]}' is not one that TensorRT-RTX builds for: {', '.join(known)}")
        usual = [target for target in DEFAULT_TARGETS if made is None or made.refusal(backend, [target]) is None]
        chosen = sorted(set(targets or usual), key=known.index)
    if made is not None and (refusal := made.refusal(backend, chosen)) is not None:
        raise RedipruneError(refusal)
    return chosen


def _is_current(bundle: Bundle, backend: str, stage: str, wanted: Profile, new: EngineSpec, old: EngineSpec) -> bool:
    try:
        bundle.check_engine(backend, stage)
    except RedipruneError:
        return False
    same = old.version == new.version and old.compute_capability == new.compute_capability
    return same and old.profile.get(stage) == wanted


def _keep(engines: EngineSpec, old: EngineSpec, backend: str, stage: str) -> None:
    file = EngineSpec.file(backend, stage)
    engines.stages.append(stage)
    engines.precision[stage] = old.precision[stage]
    engines.profile[stage] = old.profile[stage]
    engines.source_sha256[stage] = old.source_sha256[stage]
    engines.files[file] = old.files[file]


def _check_memory(bundle: Bundle, todo: list[str]) -> None:
    have = available_memory()
    for stage in todo:
        needed = build_estimate(bundle.manifest.stages[stage].weight_bytes)
        if have is not None and needed > have:
            raise RedipruneError(
                f"building '{stage}' takes up to {needed / 1e9:.1f} GB of memory and {have / 1e9:.1f} GB are free; close "
                "other programs, build on a larger machine, or export in a lower precision"
            )


def _run(job: Job, library: str, report: Progress) -> Outcome:
    """Run a job in a process of its own.

    Raises:
        RedipruneError: it failed, or the process died.
        KeyboardInterrupt: Ctrl-C; the process was ended first.
    """
    last = "starting"
    with tempfile.TemporaryFile() as noise:
        worker = subprocess.Popen(
            [sys.executable, "-m", "rediprune.export.build.tensorrt_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            start_new_session=True,  # Ctrl-C reaches this process, which then ends that one
            text=True,
        )
        assert worker.stdin is not None and worker.stdout is not None
        answer: dict[str, Any] = {}
        try:
            with suppress(BrokenPipeError):
                json.dump(asdict(job), worker.stdin)
                worker.stdin.close()
            for line in worker.stdout:
                answer = json.loads(line)
                if "progress" in answer:
                    last, fraction = answer["progress"]
                    report(job.stage, last, 0.98 * fraction)
            worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            worker.stdout.close()
        noise.seek(0)
        said = noise.read().decode(errors="replace").strip().splitlines()
    if "error" in answer:
        raise RedipruneError(
            f"{library} cannot build '{job.stage}': {answer['error']}; the stage still runs with --backend ort"
        )
    if "result" not in answer:
        code = worker.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        killed = "; the system may have been out of memory" if how == "SIGKILL" else ""
        reason = f" ({said[-1][:300]})" if said else ""
        raise RedipruneError(
            f"{library} died while building '{job.stage}', at '{last}', with {how}{reason}{killed}; the stage still runs "
            "with --backend ort"
        )
    return Outcome(**answer["result"])
