"""A checkpoint with its vision tower's weights named as transformers before 5 wrote them, for tools that read those only.

    python -m rediprune.export.checkpoint.older_names CHECKPOINT COPY

`vision_tower.encoder…` becomes `vision_tower.vision_model.encoder…`; checkpoints of the hub have these names already.
"""

import argparse
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

_TOWER, _INSIDE = "vision_tower.", "vision_tower.vision_model."


def older_name(name: str) -> str:
    """A weight's name as earlier releases wrote it."""
    at = name.find(_TOWER)
    if at < 0 or _INSIDE in name:
        return name
    return f"{name[:at]}{_INSIDE}{name[at + len(_TOWER) :]}"


def copy_with_older_names(checkpoint: Path, target: Path) -> int:
    """Copy a checkpoint; how many weights got other names.

    Args:
        checkpoint: a folder with config.json and safetensors in one file.
        target: the folder to make.

    Raises:
        SystemExit: its weights are in several files, or the folder is there.
    """
    weights = sorted(checkpoint.glob("*.safetensors"))
    if len(weights) != 1:
        raise SystemExit(f"'{checkpoint}' has {len(weights)} files of weights; one is renamed")
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns("*.safetensors"))
    renamed, tensors = 0, {}
    with safe_open(weights[0], "pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118 (no mapping)
            renamed += older_name(name) != name
            tensors[older_name(name)] = file.get_tensor(name)
    save_file(tensors, target / weights[0].name, metadata)
    return renamed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("copy", type=Path)
    given = parser.parse_args()
    print(f"{copy_with_older_names(given.checkpoint, given.copy)} weights renamed")


if __name__ == "__main__":
    main()
