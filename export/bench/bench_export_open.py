"""The `language` graph in ONNX Runtime, straight from the checkpoint's files: opened, and one token computed.

`python -m rediprune.export.bench.bench_export_open BUNDLE`. Run as written: nothing is folded or packed, each weight is
converted when it is needed, so the decoder needs not fit in memory.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...runtime.backends.language_inputs import LanguageInputs
from ...runtime.bundle import Bundle


def main() -> None:
    bundle = Bundle.open(sys.argv[1], verify=False)
    spec, decoder = bundle.manifest.stages["language"], bundle.manifest.decoder
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # by default all Casts run first and fill the memory
    began = time.perf_counter()
    session = ort.InferenceSession(bundle.path(spec.file), options, providers=["CPUExecutionProvider"])
    opened = time.perf_counter() - began
    dtype = np.dtype(spec.inputs[0].dtype)
    cache = np.zeros((1, decoder.kv_heads, 8, decoder.head_width), dtype)
    feed = {port.name: cache for port in spec.inputs if port.name.startswith("past.")}
    feed["inputs_embeds"] = np.random.default_rng(0).standard_normal((1, 1, decoder.width)).astype(dtype)
    feed["write_index"] = np.array([0], np.int64)
    feed |= LanguageInputs(spec).feed([0], 1)
    began = time.perf_counter()
    (logits,) = session.run(["logits"], feed)
    took = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    memory = {key: int(re.findall(rf"{key}:\s+(\d+)", status)[0]) * 1024 for key in ("VmHWM", "RssAnon", "RssFile")}
    finite = bool(np.isfinite(np.asarray(logits)).all())
    print(json.dumps({"open_seconds": round(opened, 2), "token_seconds": round(took, 1), "finite": finite} | memory))


if __name__ == "__main__":
    main()
