"""What exporting and quantising a checkpoint takes, and one answer. `python -m rediprune.export.bench.bench_export --help`.

Each step runs in a process of its own, so that its peak memory is its own. The peer of the export is reading the
checkpoint's bytes once, which every exporter that loads weights does at least. The last line is one JSON document.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/7b"), help="made where it is missing")
    parser.add_argument("--bundle", type=Path, default=Path("engines/7b-fp32"))
    parser.add_argument("--size", default="7b", help="of a made checkpoint: tiny, real or 7b (14 GB)")
    parser.add_argument("--family", default="llava_next_video")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--image", help="quantise the decoder to int4 and ask one question about this picture")
    parser.add_argument("--skip-open", action="store_true", help="do not open `language` from the checkpoint's files")
    parser.add_argument("--out", type=Path, help="write the JSON document here too")
    asked = parser.parse_args()
    cli = [sys.executable, "-m", "rediprune.runtime"]
    document: dict[str, Any] = {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime", "onnx-ir")},
        "precision": asked.precision,
    }
    if not (asked.checkpoint / "config.json").is_file():
        make = ["new-checkpoint", str(asked.checkpoint), "--size", asked.size, "--family", asked.family]
        document["make_checkpoint"] = _run([*cli, *make])
    shards = list(asked.checkpoint.glob("*.safetensors"))
    document["checkpoint_bytes"] = sum(file.stat().st_size for file in shards)
    document["read_checkpoint"] = _run(["cat", *map(str, shards)])
    export = ["export", str(asked.checkpoint), "-o", str(asked.bundle), "--precision", asked.precision, "--force"]
    document["export"] = _run([*cli, *export])
    files = [file for file in asked.bundle.rglob("*") if file.is_file()]
    document["new_bytes"] = sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
    document["linked_bytes"] = sum(file.stat().st_size for file in files if file.stat().st_nlink > 1)
    stages = Bundle.open(asked.bundle, verify=False).manifest.stages
    document["compared"] = {name: stage.compared for name, stage in stages.items()}
    if not asked.skip_open:
        document["language"] = _run(
            [sys.executable, "-m", "rediprune.export.bench.bench_export_open", str(asked.bundle)]
        )
    if asked.image is not None:
        small = str(asked.bundle.with_name(f"{asked.bundle.name}-int4"))
        recipe = ["--recipe", "language=int4", "--force"]
        document["int4"] = _run([*cli, "calibrate", str(asked.bundle), "-o", small, *recipe])
        document["build"] = _run([*cli, "build", small, "--backend", "ort"])
        question = ["--prompt", "What is this?", "--keep", "0.15", "--prune-tiles", "--max-new-tokens", "16", "--json"]
        document["answer"] = _run([*cli, "run", small, "--image", asked.image, *question])
        document["answer"]["says"].pop("kept")
    document["load_after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(document)
    if asked.out is not None:
        asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(text)


def _run(command: list[str]) -> dict[str, Any]:
    """Run a command: wall and processor seconds, peak resident memory in bytes, and what its last line says as JSON."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        last = b""
        for line in iter(lambda: process.stdout.read(1 << 20), b""):  # pyright: ignore[reportOptionalMemberAccess]
            last = line
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command[:6])} … failed with exit code {process.returncode}")
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory": usage.ru_maxrss * 1024,
    }
    answer = re.findall(rb"^\{.*\}$", last, re.MULTILINE)
    return found | ({"says": json.loads(answer[-1])} if answer else {})


if __name__ == "__main__":
    main()
