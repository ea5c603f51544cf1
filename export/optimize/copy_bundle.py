"""A bundle's twin, its files hard-linked where the file system can, for a plan of its own."""

import os
import shutil
from pathlib import Path

from ...runtime.bundle import Bundle
from ...runtime.bundle.lock import making
from ...runtime.bundle.staging import Staging, check_target


def copy_bundle(source: Bundle, folder: Path) -> None:
    """Make the same bundle at another place, without its engines.

    Raises:
        RedipruneError: the place cannot be one of a bundle, or cannot be written to.
    """
    target = check_target(folder)
    with making(target):
        staging = Staging(target, {"copy of": source.manifest.digest}, force=True)
        for name in source.expected_files():
            place = staging.folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(os.path.realpath(source.path(name)), place)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source.path(name), place)
        staging.publish(source.manifest.model_copy(update={"engines": {}, "plan": None}))
