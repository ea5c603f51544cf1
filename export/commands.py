"""The commands of `rediprune` that need torch or ONNX: export, build, validate, bench, new-checkpoint.

Heavy packages are imported when a command runs, so that `--help` stays fast.
"""

import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..runtime.bundle import WEIGHTS
from ..runtime.cli import BACKEND_HELP, BundleArgument, JsonOption, check_output_file
from ..runtime.errors import RedipruneError
from ..runtime.session import runs_on

_NEEDED = ("torch", "accelerate", "onnx", "onnx_ir", "onnxscript", "polygraphy", "safetensors")

Out = Annotated[Path, typer.Option("-o", "--out", help="Where to.")]


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "export",
        epilog="""Examples:\n
    rediprune export path/to/llava-1.5-7b-hf -o engines/llava\n
    rediprune export llava-hf/llava-1.5-7b-hf -o engines/llava --precision fp16\n
    rediprune export path/to/bf16-checkpoint -o engines/cpu --copy    (starts faster on CPUs)""",
    )(needs_extra(export))
    app.command(
        "build",
        epilog="""Examples:\n
    rediprune build engines/llava --backend ort\n
    rediprune build engines/llava --backend openvino\n
    rediprune build engines/llava --backend tensorrt-rtx --target sm_89,sm_120 --profile kept=1:64:576""",
    )(needs_extra(build))
    app.command(
        "validate",
        epilog="""Examples:\n
    rediprune validate engines/llava\n
    rediprune validate engines/llava --stage vision --stage select\n
    rediprune validate engines/llava --eager vision    (does the answer drift without the vision engine?)""",
    )(needs_extra(validate))
    app.command(
        "bench",
        epilog="""Examples:\n
    rediprune bench engines/real --image photo.jpg\n
    rediprune bench engines/real engines/real-int8 --backends ort,openvino --peers eager,compiled --page bench.md\n
    rediprune bench engines/real --peers openvino-genai,llama.cpp --peers-python .venv-peers/bin/python""",
    )(needs_extra(bench))
    app.command(
        "new-checkpoint",
        epilog="Example:\n\n    rediprune new-checkpoint checkpoints/tiny --family llava_next_video --decoder qwen2",
    )(needs_extra(new_checkpoint))


def needs_extra(command: Callable[..., None]) -> Callable[..., None]:
    """Say what to install, where the packages of the extra are missing."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise RedipruneError(f"this needs {', '.join(missing)}; install it with: pip install 'rediprune[export]'")
        command(*args, **kwargs)

    return run


def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder with config.json and safetensors, or a hub id.")],
    out: Out,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="Write converted weights instead of referring to the checkpoint's own files: more disk, and a bfloat16 "
            "checkpoint then needs no conversion at every start on a CPU.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Redo finished stages too.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run each graph beside PyTorch.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Trace a checkpoint's five stages into a bundle. A finished stage is not redone."""
    from .bundle import export_bundle
    from .checkpoint import Checkpoint

    with stage_progress(as_json) as report:
        bundle = export_bundle(Checkpoint.open(checkpoint, revision), out, precision, force, check, report, copy)
    manifest = bundle.manifest
    linked = {name for name in bundle.expected_files() if name.startswith(f"{WEIGHTS}/")}
    own = sum(bundle.path(file).stat().st_size for file in bundle.expected_files().keys() - linked)
    shared = sum(bundle.path(file).stat().st_size for file in linked)
    uncompared = [] if not check else [name for name, stage in manifest.stages.items() if not stage.compared]
    if as_json:
        document = {"bundle": str(out), "family": manifest.family, "precision": manifest.precision}
        print(json.dumps(document | {"bytes": own, "linked_bytes": shared, "not_compared": uncompared}))
        return
    console = Console()
    if not shared and not copy:
        console.print("the weights were copied: this place cannot have hard links to the checkpoint's files")
    if uncompared:
        console.print(
            f"not compared with PyTorch, too large: {', '.join(uncompared)} (every graph is valid ONNX)", soft_wrap=True
        )
    linked_size = f" and {shared / 1e6:.1f} MB of the checkpoint's own files" if shared else ""
    console.print(
        f"[bold]{out}[/bold]: {manifest.family_name}, {manifest.precision}, {len(manifest.stages)} stages, "
        f"{own / 1e6:.1f} MB{linked_size}. Ask it: rediprune run {out} --image photo.jpg --prompt 'What is this?'",
        highlight=False,
        soft_wrap=True,
    )


def build(
    bundle: BundleArgument,
    backend: Annotated[
        str, typer.Option(help="ort, openvino, tensorrt (for the GPU here) or tensorrt-rtx (needs none).")
    ] = "ort",
    target: Annotated[
        list[str] | None, typer.Option(help="GPUs to build for, e.g. sm_80,sm_89,sm_120; tensorrt-rtx only.")
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Sizes an engine takes, e.g. kept=1:64:576 or cache=2048; repeat.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build finished engines again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle's stages for a backend, and note in the manifest what they were built with."""
    if backend in ("ort", "openvino"):
        _build_cpu(bundle, backend, bool(target or profile), as_json)
        return
    if backend not in ("tensorrt", "tensorrt-rtx"):
        raise RedipruneError(
            f"backend '{backend}' is not one that is built; choose ort, openvino, tensorrt or tensorrt-rtx"
        )
    from .build_tensorrt import build_tensorrt

    targets = [name.strip() for text in target or () for name in text.split(",")]
    with stage_progress(as_json) as report:
        made = build_tensorrt(bundle, backend, targets=targets, profile=profile or (), force=force, progress=report)
    if as_json:
        print(json.dumps(made.document()))
        return
    console, engines = Console(), made.engines
    table = Table("stage", "precision", "seconds", "peak memory", "size")
    for name, stage in made.stages.items():
        took = ["up to date", ""] if stage.reused else [f"{stage.seconds:.1f}", f"{stage.peak_memory / 1e9:.2f} GB"]
        table.add_row(name, engines.precision[name], *took, f"{stage.size / 1e6:.1f} MB")
    console.print(table)
    console.print(
        f"{bundle}: {engines.library} {engines.version} for {', '.join(engines.compute_capability)}",
        highlight=False,
        soft_wrap=True,
    )


def _build_cpu(bundle: Path, backend: str, with_sizes: bool, as_json: bool) -> None:
    from .build_cpu import build_cpu

    if with_sizes:
        raise RedipruneError(f"--target and --profile are for tensorrt and tensorrt-rtx; {backend} takes every size")
    with stage_progress(as_json) as report:
        engine = build_cpu(bundle, backend, report)
    if as_json:
        print(engine.model_dump_json())
        return
    left = "" if runs_on(backend, "select") == backend else f"; select runs on {runs_on(backend, 'select')}"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{bundle}: {len(engine.stages)} stages run on {engine.library} {engine.version}{left}")


def validate(
    bundle: BundleArgument,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "ort",
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; repeat.")] = None,
    eager: Annotated[list[str] | None, typer.Option(help="Run this stage eagerly end to end; repeat.")] = None,
    image: Annotated[Path | None, typer.Option(help="Ask about this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Ask about this video.")] = None,
    threads: Annotated[int, typer.Option(help="Threads per stage; 0 leaves it to the backend.")] = 0,
    refresh: Annotated[bool, typer.Option("--refresh", help="Compute the eager reference anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with the checkpoint in eager PyTorch. Exit code 1 if it differs."""
    from .validate import validate as run

    console = Console()
    with _waiting("comparing with eager PyTorch", as_json):
        report = run(
            bundle,
            backend,
            stage or (),
            eager or (),
            image,
            video,
            threads=threads,
            refresh=refresh,
        )
    if as_json:
        print(json.dumps(report.document()))
    else:
        _print_report(console, report)
    raise typer.Exit(0 if report.passed else 1)


def _print_report(console: Console, report: Any) -> None:
    table = Table("stage", "input", "max abs", "max rel", "1 − cos", "rel error", "eager noise", "", title="stages")
    cases: dict[tuple[str, str], list[Any]] = {}
    for row in report.stages:
        cases.setdefault((row.stage, row.case), []).append(row)
    for (stage, case), rows in cases.items():
        worst = max(rows, key=lambda row: (not row.passed, row.max_abs))
        numbers = (worst.max_abs, worst.max_rel, 1 - worst.cosine, worst.relative_error, worst.noise)
        cells = ["0" if abs(number) < 1e-15 else f"{number:.0e}" for number in numbers]
        if worst.note:
            cells = [worst.note, "", "", "", ""]
        elif stage == "select":
            cells = ["equal", "", "", "", ""]
        table.add_row(stage, case, *cells, _mark(worst.passed))
    if report.stages:
        console.print(table)
    table = Table("request", "tokens", "ids", "kept sets", "", title="end to end")
    for row in report.stories:
        ids = "equal"
        if not row.equal:
            ids = "one ends earlier"
            if row.first_divergence is not None:
                ids = f"differ from token {row.first_divergence}, logit gap {row.logit_gap:.2g}"
        kept = "equal" if row.jaccard == 1 else f"Jaccard {row.jaccard:.2f}"
        table.add_row(row.case, str(row.tokens), ids, kept, _mark(row.passed))
    if report.stories:
        console.print(table)
    eager = f" with {', '.join(report.eager)} in eager PyTorch" if report.eager else ""
    left = {row.stage: runs_on(report.backend, row.stage) for row in report.stages}
    others = "".join(f", {stage} on {backend}" for stage, backend in left.items() if backend != report.backend)
    what = f"{report.bundle} on {report.backend}{others} ({report.precision}){eager}"
    equal = sum(row.equal for row in report.stories)
    if report.passed and not report.stories:
        stages = ", ".join(dict.fromkeys(row.stage for row in report.stages))
        console.print(f"[green]equal to eager PyTorch[/green] in {stages}: {what}", highlight=False)
    elif report.passed and report.precision != "fp32":
        console.print(
            f"[green]every stage within the error expected of {report.precision}[/green], {equal} of {len(report.stories)} "
            f"answers identical to eager PyTorch in fp32: {what}",
            highlight=False,
        )
    elif report.passed:
        console.print(f"[green]equal to eager PyTorch[/green]: {what}", highlight=False)
    elif report.failing_stages:
        console.print(f"[red]differs[/red] in {', '.join(report.failing_stages)}: {what}", highlight=False)
    else:
        console.print(f"[red]answers differ[/red] though each stage agrees: {what}", highlight=False)


def _mark(passed: bool) -> str:
    return "[green]✓[/green]" if passed else "[red]✗[/red]"


def bench(
    bundle: Annotated[list[Path], typer.Argument(help="Bundles of one checkpoint, e.g. in several precisions.")],
    image: Annotated[Path | None, typer.Option(help="Ask about this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Ask about this video instead.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the video.")] = 8,
    runs: Annotated[int, typer.Option(min=1, help="Turns of every contender, each a fresh process.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="Threads of every contender; 0 is all cores.")] = 0,
    keeps: Annotated[str, typer.Option(help="Keep ratios, comma separated.")] = "1,0.25,0.15,0.1",
    backends: Annotated[str, typer.Option(help="Backends of every bundle, comma separated.")] = "ort",
    peers: Annotated[
        str,
        typer.Option(
            help="Comma separated: eager, eager-bf16, compiled (torch.compile), released, exported (transformers' ONNX); "
            "with --peers-python openvino-genai (-int8, -int4) and llama.cpp (-q8_0, -q4_0); or none."
        ),
    ] = "eager,eager-bf16,released",
    peers_python: Annotated[
        str | None,
        typer.Option(help="Python that has openvino-genai and llama.cpp (make bench-peers); otherwise this one."),
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds a turn may take; a peer that takes longer is left out.")] = 600,
    grow: Annotated[bool, typer.Option("--grow", help="Measure growth with frames, keep and prompt too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document here too.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page in Markdown with plots here.")] = None,
) -> None:
    """Time bundles beside what a user would take instead. The last line is one JSON document."""
    from .bench.run import bench as run
    from .bench.table import print_table

    ratios = keep_ratios(keeps, "--keeps")
    if page is not None and find_spec("matplotlib") is None:
        raise RedipruneError("--page needs matplotlib; install it with: pip install 'rediprune[evaluate]'")
    for path, option in ((out, "--out"), (page, "--page")):
        if path is not None:
            check_output_file(path, option)
    document = run(
        bundle,
        image=image,
        video=video,
        frames=frames,
        keeps=ratios,
        backends=backends.split(","),
        peers=[] if peers == "none" else peers.split(","),
        runs=runs,
        threads=threads,
        limit=limit,
        grow=grow,
        peers_python=peers_python or sys.executable,
    )
    print_table(Console(), document)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        from .bench.page import write_page

        write_page(document, page, shlex.join(["rediprune", *sys.argv[1:]]))
    print(json.dumps(document))


def keep_ratios(text: str, option: str) -> list[float]:
    """Keep ratios from a command line, comma separated.

    Raises:
        RedipruneError: one is no number in (0, 1]; the message names the option.
    """
    try:
        ratios = [float(ratio) for ratio in text.split(",")]
    except ValueError as error:
        raise RedipruneError(f"{option} takes ratios separated by commas, not '{text}'") from error
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise RedipruneError(f"{option} takes ratios in (0, 1], not '{text}'")
    return ratios


def new_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Where to.")],
    family: Annotated[str, typer.Option(help="llava, llava_next_video or video_llava.")] = "llava",
    tower: Annotated[str, typer.Option(help="clip or siglip.")] = "clip",
    decoder: Annotated[str, typer.Option(help="llama or qwen2.")] = "llama",
    size: Annotated[str, typer.Option(help="tiny, real (CLIP-L/336 + 0.5 B or 1.1 B) or 7b.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Make a checkpoint with random weights in the real layout, to try and to measure with."""
    from .checkpoints import make_checkpoint

    try:
        with _waiting("making weights", False):
            make_checkpoint(folder, family, tower, decoder, size, seed)
    except ValueError as error:
        raise RedipruneError(str(error)) from error
    Console().print(f"[bold]{folder}[/bold]: {family}, {tower} + {decoder}, {size}, random weights", highlight=False)


@contextmanager
def _waiting(what: str, silent: bool) -> Iterator[None]:
    if silent:
        yield
    else:
        with Console(stderr=True).status(what):
            yield


@contextmanager
def stage_progress(silent: bool) -> Iterator[Any]:
    """A bar per stage, on stderr."""
    columns = (
        TextColumn("{task.fields[stage]:<12}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=silent) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, what: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(what, total=1.0, stage=stage)
            progress.update(tasks[stage], description=what, completed=fraction)

        yield report
