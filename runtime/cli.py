"""The command line. Commands of other packages join through the entry points `rediprune.commands`."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .bundle import Bundle, CalibrationSpec, Sensitivity
from .errors import RedipruneError

app = typer.Typer(
    help="ReDiPrune engines: LLaVA-type checkpoints in, fast engines with pruned visual tokens out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

BundleArgument = Annotated[Path, typer.Argument(help="The bundle, a folder that `rediprune export` made.")]
BACKEND_HELP = (
    "What runs the stages: ort, openvino (but select, which is on ort), openvino-bf16, ort-cuda, tensorrt, tensorrt-rtx or "
    "eager."
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@app.command(
    epilog="""Examples:\n
    rediprune run engines/demo --image photo.jpg --prompt "What is this?"\n
    rediprune run engines/demo --video clip.mp4 --frames 8 --keep 0.15 --prompt "What happens?" --show kept.png\n
    rediprune run engines/demo --image a.png --prompt "What is this?" --prompt "And what colour?"  (two turns)\n
    rediprune run engines/demo --image a.png --count 64 --temperature 0.7 --seed 1 --prompt "Describe it." --json"""
)
def run(
    bundle: BundleArgument,
    prompt: Annotated[list[str], typer.Option(help="The question; repeat it for further turns.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; repeat for several.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A video; repeat for several.")] = None,
    keep: Annotated[float | None, typer.Option(help="Ratio of visual tokens kept, in (0, 1]; 1 keeps all.")] = None,
    count: Annotated[int | None, typer.Option(help="Number of tokens kept per frame, instead of --keep.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of relevance against diversity.")] = None,
    tau: Annotated[float | None, typer.Option(help="Candidate filter; 0 is off.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames sampled from each video.")] = None,
    frame_tolerance: Annotated[
        float | None,
        typer.Option(help="Encode a video's frame only where it differs from those before by more levels (of 255)."),
    ] = None,
    prune_tiles: Annotated[bool, typer.Option("--prune-tiles", help="Prune images seen in tiles too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: the checkpoint's.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the most likely tokens of this mass.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 repeats less.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the answer; repeat for several.")] = None,
    show: Annotated[Path | None, typer.Option(help="Write a picture of the kept patches here (PNG).")] = None,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "ort",
    eager: Annotated[list[str] | None, typer.Option(help="Run this stage in eager PyTorch; repeat.")] = None,
    threads: Annotated[int, typer.Option(help="Threads per stage; 0 leaves it to the backend.")] = 0,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="Use the chat template, or the prompt as it is.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images or videos, and say what was kept and what it took."""
    if backend != "eager" and not eager:
        hide_torch()
    from .pipeline import Pipeline

    if keep is not None and count is not None:
        raise RedipruneError("give --keep (a ratio) or --count (a number of tokens), not both")
    if keep is not None and keep > 1:
        hint = f"; for {keep:.0f} tokens per frame give --count {keep:.0f}" if keep < 1e6 else ""
        raise RedipruneError(f"--keep is a ratio in (0, 1]{hint}")
    if len(prompt) > 1 and not chat:
        raise RedipruneError("several turns need the chat template; leave --raw out")
    if show is not None and not (image or video):
        raise RedipruneError("--show draws kept patches, and there is no image or video; give --image or --video")
    if show is not None:
        check_picture_path(show, "--show")
    pipeline = Pipeline.load(bundle, backend, eager=eager or (), threads=threads)
    images, videos = list(image or ()), list(video or ())
    answers = []
    dialogue: Any = []
    for turn, text in enumerate(prompt):
        given: Any = text
        if len(prompt) > 1:
            from .prompt import question

            dialogue += question(pipeline.processor, text, 0 if turn else len(images), 0 if turn else len(videos))
            given = dialogue
        stream = pipeline.stream(
            given,
            images,
            videos,
            frames=frames,
            keep=count if count is not None else keep,
            alpha=alpha,
            tau=tau,
            frame_tolerance=frame_tolerance,
            prune_tiles=prune_tiles,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop or (),
            chat=chat,
        )
        for piece in stream:
            if not as_json:
                print(piece, end="", flush=True)
        answer = stream.answer
        answers.append(answer)
        dialogue = [*dialogue, {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}]
        if not as_json:
            print()
            Console(stderr=True, soft_wrap=True).print(_summary(answer), style="dim", highlight=False)
    if show is not None:
        from .show import draw_answer

        draw_answer(answers[-1], pipeline.processor, prompt[-1]).save(show)
    if as_json:
        documents = [_document(answer) for answer in answers]
        print(json.dumps(documents[0] if len(documents) == 1 else documents))


def check_picture_path(path: Path, option: str) -> None:
    """Refuse a path that no picture can be written to, before any work is done for it."""
    if not path.parent.is_dir():
        raise RedipruneError(f"'{path.parent}' is not a folder; make it, or give {option} another path")
    if path.is_dir() or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise RedipruneError(f"{option} takes a file ending in .png, .jpg or .webp, not '{path}'")


def check_output_file(path: Path, option: str) -> None:
    """Refuse a path that no file can be written to, before any work is done for it."""
    if path.is_dir() or not path.parent.is_dir():
        raise RedipruneError(f"'{path}' cannot be written; give {option} a file in a folder that is there")


def hide_torch() -> None:
    """Keep transformers from importing torch where it is installed: seconds at start-up for what is not used here."""
    sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]


def _summary(answer: Any) -> str:
    seconds = answer.timings
    share = seconds["select"] / seconds["time_to_first_token"]
    kept = ""
    if answer.visual_tokens:
        kept = f"kept {answer.kept_tokens} of {answer.visual_tokens} visual tokens · "
    return (
        f"{kept}first token {seconds['time_to_first_token'] * 1e3:.0f} ms "
        f"(vision {seconds['vision'] * 1e3:.0f}, select {seconds['select'] * 1e3:.1f} = {share:.1%}, "
        f"prefill {seconds['prefill'] * 1e3:.0f}) · {answer.tokens_per_second:.0f} tokens/s · "
        f"peak memory {answer.peak_memory / 1e9:.2f} GB"
    )


def _document(answer: Any) -> dict[str, Any]:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "visual_tokens": answer.visual_tokens,
        "kept_tokens": answer.kept_tokens,
        "encoded_frames": answer.encoded_frames,
        "kept": [indices.tolist() for indices in answer.kept],
        "seconds": answer.timings,
        "tokens_per_second": answer.tokens_per_second,
        "peak_memory_bytes": answer.peak_memory,
    }


@app.command(epilog="Example:\n\n    rediprune inspect engines/demo")
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Print what a bundle holds, after checking every file against its hash."""
    opened = Bundle.open(bundle, remember=False)
    manifest = opened.manifest
    if as_json:
        print(manifest.model_dump_json(indent=2))
        return
    console = Console()
    console.print(f"[bold]{manifest.family_name}[/bold] bundle, {manifest.precision}, tool {manifest.tool_version}")
    console.print(f"source: {manifest.source.name} (config {manifest.source.config_sha256[:12]})", highlight=False)
    decoder = manifest.decoder
    console.print(
        f"{manifest.tower} {manifest.image_size} px, {manifest.channels} wide · {manifest.language_model} "
        f"{decoder.layers} × {decoder.width}, {decoder.max_positions} positions",
        highlight=False,
    )
    for kind, spec in manifest.modalities.items():
        leading = f"{spec.leading} + " if spec.leading else ""
        tiles = ", in tiles (not pruned unless asked)" if spec.tiled else ""
        console.print(f"{kind}: {leading}{spec.rows} × {spec.columns} = {spec.patches} tokens a frame{tiles}")
    table = Table("stage", "inputs", "outputs", "precision", "size")
    for name, stage in manifest.stages.items():
        size = sum(opened.path(file).stat().st_size for file in stage.files)
        table.add_row(name, _ports(stage.inputs), _ports(stage.outputs), stage.precision, f"{size / 1e6:.2f} MB")
    console.print(table)
    if manifest.calibration is not None and manifest.calibration.sensitivity:
        made = manifest.calibration
        console.print(sensitivity_table(made.sensitivity, made))
    for backend, engine in manifest.engines.items():
        for stage in engine.stages if engine.files else ():
            opened.check_built(backend, stage)
        targets = f" for {', '.join(engine.compute_capability)}" if engine.compute_capability else ""
        stages = ", ".join(f"{stage} {engine.precision.get(stage, '')}".strip() for stage in engine.stages)
        console.print(f"engines: {backend} with {engine.library} {engine.version}{targets}; {stages}", highlight=False)
    console.print("all files are as they were when the bundle was made")


def sensitivity_rows(
    found: Sequence[Sensitivity], made: CalibrationSpec | None = None
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: what each unit of layers costs; of a calibrated bundle, the precision it has there."""
    head = ["stage", "unit", "weights", "error alone", "kept sets", "logits", "next tokens"]
    rows = []
    for one in found:
        kept = "" if one.kept is None else f"{one.kept:.3f}"
        row = [one.stage, one.unit, f"{one.weights:,}", f"{one.error:.3%}", kept, f"{one.logits:.3%}"]
        row.append(f"{one.tokens:.1%}")
        if made is not None:
            row.append(made.recipe[one.stage] if one.quantised else made.source_precision)
        rows.append(row)
    return head + ["precision"] * (made is not None), rows


def sensitivity_table(found: Sequence[Sensitivity], made: CalibrationSpec | None = None) -> Table:
    """`sensitivity_rows` for a terminal: figures stay whole, a unit's long name goes on in the next line."""
    head, rows = sensitivity_rows(found, made)
    table = Table(title="each unit quantised alone, beside the source, held out", box=SIMPLE, padding=0)
    for name in head:
        if name == "unit":
            table.add_column(name, overflow="fold")
        else:
            words = [*name.split(), *(row[head.index(name)] for row in rows)]
            table.add_column(name, width=max(map(len, words)))
    for one, row in zip(found, rows, strict=True):
        table.add_row(*map(escape, row), style=None if one.quantised else "bold")
    return table


def _ports(ports: list[Any]) -> str:
    shown = [f"{port.name} {list(port.shape)}".replace("'", "") for port in ports[:5]]
    return escape("\n".join(shown + ([f"… {len(ports) - 5} more"] if len(ports) > 5 else [])))


def main() -> None:
    """Entry point. Exit code 0 good, 1 a check failed, 2 bad input, 3 a fault of the tool (130 interrupted: `__main__`)."""
    try:
        for entry in entry_points(group="rediprune.commands"):
            entry.load()(app)
        app()  # leaves with click's own words and exit code 2 where an option is wrong
    except RedipruneError as error:
        _fail(str(error), 2)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail("not enough memory; close other programs, or take a smaller checkpoint or precision", 2)
    except Exception as error:
        if os.environ.get("REDIPRUNE_DEBUG"):
            raise
        _fail(f"{type(error).__name__}: {error} (a fault of the tool; REDIPRUNE_DEBUG=1 shows where)", 3)


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(message)}", highlight=False)
    sys.exit(code)
