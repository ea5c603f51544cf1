"""`rediprune run`: answer a question about images or videos."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..errors import RedipruneError
from .arguments import BundleArgument, JsonOption, LimitOption, check_picture_path, hide_torch, parse_keep
from .run_options import (
    Alpha,
    Backend,
    Chat,
    Count,
    Eager,
    FirstToken,
    Frames,
    FrameTolerance,
    Image,
    Keep,
    MaxNewTokens,
    MaxPixels,
    MinPerFrame,
    MinPixels,
    Positions,
    Prompts,
    PruneTiles,
    RepetitionPenalty,
    Scope,
    Seed,
    Show,
    Stop,
    Tau,
    Temperature,
    Threads,
    TopK,
    TopP,
    Video,
)
from .terminal import say

if TYPE_CHECKING:
    from ..answer import Answer, Stream
    from ..options import GenerateOptions, SelectOptions
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
    prompt: Prompts,
    image: Image = None,
    video: Video = None,
    keep: Keep = None,
    count: Count = None,
    alpha: Alpha = None,
    tau: Tau = None,
    frames: Frames = None,
    frame_tolerance: FrameTolerance = None,
    prune_tiles: PruneTiles = False,
    positions: Positions = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    scope: Scope = None,
    min_per_frame: MinPerFrame = None,
    first_token: FirstToken = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    show: Show = None,
    backend: Backend = "auto",
    eager: Eager = None,
    limit: LimitOption = None,
    threads: Threads = 0,
    chat: Chat = True,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images or videos, and report the kept tokens, the time and the memory.

    The answer goes to standard output, the report to standard error.
    """
    if backend != "eager" and not eager:
        hide_torch()
    from ..media.limits import MediaLimits
    from ..options import GenerateOptions, SelectOptions
    from ..pipeline import Pipeline

    ratio = parse_keep(keep, "--keep", "give --count {}")
    _check(prompt, ratio, count, chat, show, bool(image or video))
    selection = SelectOptions(
        frames=frames,
        keep=count if count is not None else ratio,
        alpha=alpha,
        tau=tau,
        frame_tolerance=frame_tolerance,
        prune_tiles=prune_tiles,
        positions=positions,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        scope=scope,
        min_per_frame=min_per_frame,
        first_token=first_token,
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
    pipeline = Pipeline.load(bundle, backend, eager=eager or (), threads=threads, limits=MediaLimits.read(limit or ()))
    media = (list(image or ()), list(video or ()))
    answers = _answer_all(pipeline, prompt, *media, _Asked(selection, generation, show is not None, as_json))
    if show is not None:
        from ..media.visualize import draw_answer

        draw_answer(answers[-1], pipeline.processor, prompt[-1]).save(show)
    if as_json:
        documents = [_document(answer, pipeline) for answer in answers]
        print(json.dumps(documents[0] if len(documents) == 1 else documents))


@dataclass(frozen=True)
class _Asked:
    """How every turn is asked, and whether its answer is printed as it comes."""

    selection: "SelectOptions"
    generation: "GenerateOptions"
    return_visuals: bool
    as_json: bool


def _answer_all(
    pipeline: "Pipeline", prompts: list[str], images: list[Path], videos: list[Path], asked: _Asked
) -> list["Answer"]:
    """Answer turn after turn; without JSON the text and the report are printed as they come."""
    answers: list[Answer] = []
    for given in _turns(pipeline, prompts, images, videos, answers):
        stream = pipeline.stream(
            given,
            images,
            videos,
            selection=asked.selection,
            generation=asked.generation,
            return_visuals=asked.return_visuals,
        )
        answers.append(_printed(stream, pipeline, quiet=asked.as_json))
    return answers


def _printed(stream: "Stream", pipeline: "Pipeline", quiet: bool) -> "Answer":
    """An answer, printed as it comes, and its report behind it, unless it is to be quiet."""
    for piece in stream:
        if not quiet:
            print(piece, end="", flush=True)
    if not quiet:
        print(flush=True)
        for warning in dict.fromkeys(stream.answer.warnings):
            say("warning", warning, "yellow")
        Console(stderr=True, soft_wrap=True).print(_summary(stream.answer, pipeline), style="dim", highlight=False)
    return stream.answer


def _check(
    prompts: list[str], keep: float | str | None, count: int | None, chat: bool, show: Path | None, has_media: bool
) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    if keep is not None and count is not None:
        raise RedipruneError("give --keep (a ratio) or --count (a number of tokens), not both")
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


def _summary(answer: "Answer", pipeline: "Pipeline") -> str:
    from ..backend_choice import describe_backends

    seconds = answer.timings
    share = seconds["select"] / seconds["time_to_first_token"]
    kept = ""
    if answer.visual_tokens:
        kept = f"kept {answer.kept_tokens} of {answer.visual_tokens} visual tokens · "
    return (
        f"{kept}first token {seconds['time_to_first_token'] * 1e3:.0f} ms "
        f"(vision {seconds['vision'] * 1e3:.0f}, select {seconds['select'] * 1e3:.1f} = {share:.1%}, "
        f"prefill {seconds['prefill'] * 1e3:.0f}) · {answer.tokens_per_second:.0f} tokens/s · "
        f"peak memory {answer.peak_memory / 1e9:.2f} GB · {describe_backends(pipeline.backends)}"
    )


def _document(answer: "Answer", pipeline: "Pipeline") -> dict[str, Any]:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "visual_tokens": answer.visual_tokens,
        "kept_tokens": answer.kept_tokens,
        "encoded_frames": answer.encoded_frames,
        "kept": [[indices.tolist() for indices in frames] for frames in answer.kept],
        "seconds": answer.timings,
        "tokens_per_second": answer.tokens_per_second,
        "peak_memory_bytes": answer.peak_memory,
        "warnings": answer.warnings,
        "backends": dict(pipeline.backends),
        "backend_reasons": dict(pipeline.reasons),
    }
