"""What the GPU programs share: the machine that numbers were taken on, and the page and JSON that they are written to."""

import argparse
import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(*packages: str) -> dict[str, str]:
    """What the numbers are taken on.

    Args:
        packages: further distributions whose versions matter; those that are not installed are left out.

    Returns:
        Names and versions, to be printed in this order; "GPU" is "none" where there is none.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = "none"
    versions = {
        "date": datetime.date.today().isoformat(),
        "GPU": found.partition(", ")[0],
        "driver": found.partition(", ")[2],
        "CUDA": torch.version.cuda or "",
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {name: value for name, value in versions.items() if value}


def in_one_line(machine: dict[str, str]) -> str:
    """The environment as the first line of a page."""
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def table_head(*columns: str) -> str:
    """The first two lines of a Markdown table."""
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add `--json` and `--markdown`, which `write_report` reads."""
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")


def refuse(error: Exception) -> int:
    """Say in one line why a program cannot run here; its exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def write_report(result: dict[str, Any], lines: Iterable[str], arguments: argparse.Namespace) -> None:
    """Print the page; write it and the numbers to where the command line says.

    Args:
        result: all numbers, as a JSON document.
        lines: of the page, in Markdown.
        arguments: with `json` and `markdown` of `add_output_options`.
    """
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
