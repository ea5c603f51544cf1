"""`optimum-cli export rediprune`: optimum finds this file in the namespace `optimum.commands.register`."""

import subprocess
import sys
from argparse import REMAINDER, ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class RedipruneExportCommand(BaseOptimumCLICommand):
    """Hands everything to `rediprune export`, whose options it takes."""

    COMMAND = CommandInfo(name="rediprune", help="Export a LLaVA-type checkpoint to ONNX stages with token pruning.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="A folder with safetensors, or a hub id.")
        parser.add_argument("output", help="The bundle to make.")
        parser.add_argument("options", nargs=REMAINDER, help="Options of `rediprune export`, e.g. --precision fp16.")

    def run(self) -> None:
        args: Any = self.args
        command = [sys.executable, "-m", "rediprune.runtime", "export", args.model, "-o", args.output, *args.options]
        sys.exit(subprocess.run(command).returncode)


REGISTER_COMMANDS = [(RedipruneExportCommand, ExportCommand)]
