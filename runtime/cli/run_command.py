"""`rediprune run`: answer a question about images or videos."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import RedipruneError
from .arguments import BACKEND_HELP, BundleArgument, JsonOption, check_picture_path, hide_torch

if TYPE_CHECKING:
    from ..answer import Answer
    from ..pipeline import Pipeline
    from ..prompt import Prompt


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "run",
        epilog="""Examples:\n
    rediprune run engines/demo --image photo.jpg --prompt "What is this?"\n
    rediprune run engines/demo --video clip.mp4 --frames 8 --keep 0.15 --prompt "What happens?" --show kept.png\n
    rediprune run engines/demo --image a.png --prompt "What is this?" --prompt "And what colour?"  (two turns)\n
    rediprune run engines/demo --image a.png --count 64 --temperature 0.7 --seed 1 --prompt "Describe it." --json""",
    )(run)


def run(
    bundle: BundleArgument,
    prompt: Annotated[
        list[str], typer.Option(help="The question. Repeat the option to ask further turns of one dialogue.")
    ],
    image: Annotated[list[Path] | None, typer.Option(help="An image file. Repeat the option to give several.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A video file. Repeat the option to give several.")] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            help="The ratio of visual tokens to keep in each frame, in (0, 1]. 1 keeps all of them. Default: the bundle's."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="The number of visual tokens to keep in each frame, in place of --keep.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="The weight of relevance to the question against diversity; 0 selects by diversity alone."),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(help="Filter the candidates by their relevance to the question first; 0 turns the filter off."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="The number of frames to sample from each video, at even distances. Default: the checkpoint's, or 8."
        ),
    ] = None,
    frame_tolerance: Annotated[
        float | None,
        typer.Option(
            help="Reuse the features of an earlier, similar frame where no region differs by more than this many colour "
            "levels (of 255). Default: encode every frame."
        ),
    ] = None,
    prune_tiles: Annotated[
        bool,
        typer.Option(
            "--prune-tiles",
            help="Prune images that the model sees in tiles (LLaVA-NeXT); by default they are not pruned.",
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="The greatest number of tokens that the answer may have.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="The sampling temperature; 0 decodes greedily. Default: the checkpoint's.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many of the most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the most likely tokens whose probabilities add up to this.")
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Penalise tokens that have occurred already; 1 is off, larger values repeat less."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The seed of the random numbers that sampling uses; given alone, it turns sampling on."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A string that ends the answer. Repeat the option to give several.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option(help="Write a picture of the kept patches to this file (.png, .jpg or .webp).")
    ] = None,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "ort",
    eager: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this stage in eager PyTorch, to find one that drifts. Repeat the option to name several."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="The number of threads of each stage; 0 leaves it to the backend.")] = 0,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--raw", help="Put the prompt into the checkpoint's chat template, or pass it to the model as it is."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images or videos, and report the kept tokens, the time and the memory.

    The answer goes to standard output, the report to standard error.
    """
    if backend != "eager" and not eager:
        hide_torch()
    from ..options import GenerateOptions, SelectOptions
    from ..pipeline import Pipeline

    _check(prompt, keep, count, chat, show, bool(image or video))
    selection = SelectOptions(
        frames=frames,
        keep=count if count is not None else keep,
        alpha=alpha,
        tau=tau,
        frame_tolerance=frame_tolerance,
        prune_tiles=prune_tiles,
    )
    generation = GenerateOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        chat=chat,
    )
    pipeline = Pipeline.load(bundle, backend, eager=eager or (), threads=threads)
    media = (list(image or ()), list(video or ()))
    answers = []
    for given in _turns(pipeline, prompt, *media, answers):
        stream = pipeline.stream(
            given, *media, selection=selection, generation=generation, return_visuals=show is not None
        )
        for piece in stream:
            if not as_json:
                print(piece, end="", flush=True)
        answers.append(stream.answer)
        if not as_json:
            print()
            Console(stderr=True, soft_wrap=True).print(_summary(stream.answer), style="dim", highlight=False)
    if show is not None:
        from ..media.visualize import draw_answer

        draw_answer(answers[-1], pipeline.processor, prompt[-1]).save(show)
    if as_json:
        documents = [_document(answer) for answer in answers]
        print(json.dumps(documents[0] if len(documents) == 1 else documents))


def _check(
    prompts: list[str], keep: float | None, count: int | None, chat: bool, show: Path | None, has_media: bool
) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    if keep is not None and count is not None:
        raise RedipruneError("give --keep (a ratio) or --count (a number of tokens), not both")
    if keep is not None and keep > 1:
        hint = f"; for {keep:.0f} tokens per frame give --count {keep:.0f}" if keep < 1e6 else ""
        raise RedipruneError(f"--keep is a ratio in (0, 1]{hint}")
    if len(prompts) > 1 and not chat:
        raise RedipruneError("several turns need the chat template; leave --raw out")
    if show is not None and not has_media:
        raise RedipruneError("--show draws kept patches, and there is no image or video; give --image or --video")
    if show is not None:
        check_picture_path(show, "--show")


def _turns(
    pipeline: "Pipeline", prompts: list[str], images: list[Path], videos: list[Path], answers: list["Answer"]
) -> Iterator["Prompt"]:
    """What to ask, turn by turn: one prompt as it is, of several the dialogue so far, `answers` included."""
    from ..prompt import question

    if len(prompts) == 1:
        yield prompts[0]
        return
    dialogue: list[Any] = []
    for turn, text in enumerate(prompts):
        first = turn == 0  # the media stand in the first turn
        dialogue += question(pipeline.processor, text, len(images) * first, len(videos) * first)
        yield list(dialogue)
        dialogue.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1].text}]})


def _summary(answer: "Answer") -> str:
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


def _document(answer: "Answer") -> dict[str, Any]:
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
