"""TensorRT-RTX builds every stage of every family, in both precisions."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.export.build.tensorrt_engines import build_tensorrt
from rediprune.runtime.bundle import Bundle

from ...conftest import BUNDLES

SMALL = ["cache=256", "tokens=1:16:64"]


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "name",
    [
        *("llava_next", "llava_qwen3", "llava_onevision", "internvl", "internvl_qwen3"),
        *("smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    ],
)
def test_every_stage_is_built(
    name: str,
    precision: str,
    checkpoint_of: Callable[[str], Path],
    export_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    exported = export_of(checkpoint_of(name), f"{name}-{precision}", precision)
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    build = build_tensorrt(folder, "tensorrt-rtx", profile=SMALL)
    stages = Bundle.open(folder).manifest.stages
    assert build.engines.stages == [stage for stage in stages if stage != "select_clip"]  # ONNX Runtime has that one
    assert name in BUNDLES and all(stage.size > 0 for stage in build.stages.values())
