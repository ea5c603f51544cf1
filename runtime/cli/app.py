"""The command line. Commands of other packages join through the entry points `rediprune.commands`."""

import errno
import os
import sys
from importlib.metadata import entry_points

import typer

from ..errors import RedipruneError
from . import batch_command, inspect_command, loadtest_command, run_command, serve_command
from .terminal import flush_output, ready_streams, say

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
batch_command.add(app)
loadtest_command.add(app)


def main() -> None:
    """Entry point. Exit code 0 good, 1 a check failed, 2 bad input, 3 a fault of the tool (130 interrupted: `__main__`)."""
    with ready_streams():
        code, message = _outcome()
        failure = flush_output()
        if failure is not None and not isinstance(failure, BrokenPipeError):
            code, message = 2, _cannot_write(failure)
        if message:
            say("error", message, "red")
    sys.exit(code)


def _outcome() -> tuple[int | str | None, str]:
    """Run the command that the arguments name: the exit code, and the error in one line where there is one."""
    try:
        for entry in entry_points(group="rediprune.commands"):
            entry.load()(app)
        app()
    except SystemExit as leaving:  # the usual end; where an option is wrong click has said so, and the code is 2
        # rich and click leave with 1 where the reader of our output went away
        return 0 if isinstance(leaving.__context__, BrokenPipeError) else leaving.code, ""
    except RedipruneError as error:
        return 2, str(error)
    except BrokenPipeError:  # the reader of our output went away
        return 0, ""
    except MemoryError:
        return 2, "not enough memory; close other programs, or take a smaller checkpoint or precision"
    except Exception as error:
        if os.environ.get("REDIPRUNE_DEBUG"):
            raise
        if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
            return 2, _cannot_write(error) if error.filename is None else f"'{error.filename}': {error.strerror}"
        return 3, f"{type(error).__name__}: {error} (a fault of the tool; REDIPRUNE_DEBUG=1 shows where)"
    return 0, ""


def _cannot_write(error: OSError) -> str:
    return f"the output cannot be written ({error.strerror}): send it elsewhere, or make room"
