"""How bundles are loaded to be served."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime.bundle import PlanRecord
from rediprune.runtime.bundle.lock import changing
from rediprune.runtime.machine import fingerprint
from rediprune.runtime.serving.load_models import Loading, load_models
from rediprune.runtime.serving.metrics import Metrics
from rediprune.runtime.serving.serve_settings import ServeSettings


def test_a_plan_for_one_request_leaves_decoding_to_what_batches(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """OpenVINO's decoder may be the faster one for a single answer; it answers one at a time."""
    pytest.importorskip("openvino")
    folder = shutil.copytree(bundle_of("llava"), tmp_path / "bundle")
    plan = PlanRecord(
        machine=fingerprint(),
        versions={},
        target="first-token",
        budget="exact",
        backends={"vision": "openvino", "language": "openvino"},
    )
    with changing(folder) as bundle:
        bundle.manifest = bundle.manifest.model_copy(update={"plan": plan})
        bundle.write_manifest()
    served = load_models({"tiny": folder}, Loading(), ServeSettings(), Metrics())["tiny"]
    try:
        assert served.batches
        assert served.pipeline.backends["language"] == "ort"
        assert served.pipeline.backends["vision"] == "openvino"
    finally:
        served.close()
    asked = load_models({"tiny": folder}, Loading("openvino"), ServeSettings(), Metrics())["tiny"]
    try:
        assert not asked.batches
    finally:
        asked.close()
