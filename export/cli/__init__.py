"""Commands of `rediprune` that need torch or ONNX, or that measure: export, optimize, build, validate, bench, report, new-checkpoint.

Heavy packages are imported when a command runs, so that `--help` stays fast.
"""

import typer

from . import (
    bench_command,
    build_command,
    export_command,
    new_checkpoint_command,
    optimize_command,
    report_command,
    validate_command,
)


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (
        export_command,
        optimize_command,
        build_command,
        validate_command,
        bench_command,
        report_command,
        new_checkpoint_command,
    ):
        command.add(app)
