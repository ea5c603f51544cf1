"""The command line. Commands of other packages join through the entry points `rediprune.commands`."""

import os
import sys
from importlib.metadata import entry_points
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import RedipruneError
from . import inspect_command, run_command, serve_command

app = typer.Typer(
    help="Turn a LLaVA-type checkpoint into fast engines, ask them about images and videos, and prove their answers equal "
    "to PyTorch's. Visual tokens that do not matter for the question are dropped before the projector.",
    epilog="Exit codes: 0 success, 1 a check failed, 2 bad input, 3 a fault of the tool, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
run_command.add(app)
inspect_command.add(app)
serve_command.add(app)


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
