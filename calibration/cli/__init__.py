"""Commands of `rediprune` that work with data: calibrate, sensitivity, evaluate."""

import typer

from . import calibrate_command, evaluate_command, sensitivity_command


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (calibrate_command, sensitivity_command, evaluate_command):
        command.add(app)
