"""Arguments that several commands share, and the checks of what they are given."""

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RedipruneError
from ..media.limits import VARIABLE, describe_limits

BundleArgument = Annotated[
    Path, typer.Argument(help="The bundle: a folder that `rediprune export` or `rediprune calibrate` made.")
]
BACKEND_HELP = (
    "The backend that runs the stages: auto (for each the fastest at hand; `rediprune inspect` says which), ort (ONNX "
    "Runtime on the CPU), openvino or openvino-bf16 (`select` stays on ort), "
    "ort-cuda, tensorrt, tensorrt-rtx, or eager (PyTorch, the reference)."
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of text.")]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="Change what an image or video may be at most, as NAME=VALUE. Repeat the option to change several. The limits "
        f"and their defaults: {describe_limits()}. The environment variable {VARIABLE} changes them for every command.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="The folder of the bundle to make.")]
_EXPORT_EXTRA = ("torch", "accelerate", "onnx", "onnx_ir", "onnxscript", "polygraphy", "safetensors")


def needs_extra(command: Callable[..., None]) -> Callable[..., None]:
    """Say what to install, where the packages of the extra are missing."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        missing = [name for name in _EXPORT_EXTRA if find_spec(name) is None]
        if missing:
            raise RedipruneError(f"this needs {', '.join(missing)}; install it with: pip install 'rediprune[export]'")
        if find_spec("onnxruntime") is None:
            raise RedipruneError("this needs ONNX Runtime; install it with: pip install 'rediprune[cpu]'")
        if sys.flags.optimize > 1:
            raise RedipruneError(
                "PYTHONOPTIMIZE=2 (python -OO) strips the docstrings that transformers and Polygraphy read; set it to 1, or "
                "unset it"
            )
        command(*args, **kwargs)

    return run


def parse_keep(text: str | None, option: str, instead: str) -> float | str | None:
    """A keep ratio from a command line, or "auto"; that it is above 0 is checked elsewhere.

    Args:
        text: as it was given.
        option: by which.
        instead: how a number of tokens, `{}`, is asked for.

    Raises:
        RedipruneError: it is neither, or above 1; the message names the option.
    """
    if text is None or text == "auto":
        return text
    try:
        ratio = float(text)
    except ValueError as error:
        raise RedipruneError(f"{option} takes a ratio in (0, 1], or auto, not '{text}'") from error
    if ratio > 1:
        hint = f"; for {ratio:.0f} tokens of each frame {instead.format(f'{ratio:.0f}')}" if ratio < 1e6 else ""
        raise RedipruneError(f"{option} is a ratio in (0, 1]{hint}")
    return ratio


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


def check_picture_path(path: Path, option: str) -> None:
    """Refuse a path that no picture can be written to, before any work is done for it."""
    if not path.parent.is_dir():
        raise RedipruneError(f"'{path.parent}' is not a folder; make it, or give {option} another path")
    if path.is_dir() or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise RedipruneError(f"{option} takes a file ending in .png, .jpg or .webp, not '{path}'")


def refuse_without(context: typer.Context, option: str, *names: str) -> None:
    """Refuse parameters that were given without the option that they belong to.

    Args:
        context: of the command.
        option: that was not given.
        names: of the parameters.

    Raises:
        RedipruneError: one was given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise RedipruneError(f"--{name.replace('_', '-')} does nothing without {option}; give both, or neither")


def check_output_file(path: Path, option: str) -> None:
    """Refuse a path that no file can be written to, before any work is done for it."""
    if path.is_dir():
        raise RedipruneError(f"'{path}' is a folder; give {option} a file")
    if not path.parent.is_dir():
        raise RedipruneError(f"'{path}' cannot be written; give {option} a file in a folder that is there")


def hide_torch() -> None:
    """Keep transformers from importing torch where it is installed: seconds at start-up for what is not used here."""
    sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]


def check_outputs(out: Path | None, page: Path | None) -> None:
    """Refuse files that cannot be written, or a page that is no Markdown, before any work is done for them."""
    for path, option in ((out, "--out"), (page, "--page")):
        if path is not None:
            check_output_file(path, option)
    if page is not None and page.suffix != ".md":
        raise RedipruneError(f"--page takes a file ending in .md, not '{page}'")
