"""Bundles that are wrong on purpose."""

import shutil
from pathlib import Path

import numpy as np
from rediprune.runtime.bundle import Bundle, file_sha256


def corrupt(bundle: Path, target: Path, stage: str, factor: float = 1.02, dtype: str = "float32") -> Path:
    """A copy of a bundle, a quarter of one stage's weights off by a factor, its hashes made to match."""
    shutil.copytree(bundle, target)
    opened = Bundle.open(target, verify=False)
    spec = opened.manifest.stages[stage]
    data = target / f"{spec.file}.data"
    weights = np.fromfile(data, dtype)
    weights[: weights.size // 4] *= weights.dtype.type(factor)
    weights.tofile(data)
    spec.files[f"{spec.file}.data"] = file_sha256(data)
    opened.manifest.engines.clear()
    opened.write_manifest()
    return target
