"""The plugin and its proof build against TensorRT's headers, found in the folder TENSORRT_ROOT."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif("TENSORRT_ROOT" not in os.environ, reason="needs TENSORRT_ROOT, with include/NvInfer.h"),
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (the CUDA toolkit)"),
]


@pytest.fixture
def checkout(sources: Path, tmp_path: Path) -> Path:
    """A copy of the sources to build in, and a TensorRT folder with headers and no library beside it."""
    (tmp_path / "tensorrt" / "lib").mkdir(parents=True)
    (tmp_path / "tensorrt" / "include").symlink_to(Path(os.environ["TENSORRT_ROOT"], "include").resolve())
    for folder in ("cuda", sources.name):
        ignored = shutil.ignore_patterns("build", "*.so", "__pycache__")
        shutil.copytree(sources.parent / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


def make(checkout: Path, target: str) -> None:
    command = [
        "make",
        "-C",
        checkout / "plugin",
        target,
        f"TENSORRT_ROOT={checkout / 'tensorrt'}",
        "ARCHS=90",
    ]
    subprocess.run(command, check=True, capture_output=True)


def creators(library: ctypes.CDLL) -> int:
    count = ctypes.c_int(-1)
    assert library.getCreators(ctypes.byref(count))
    return count.value


def test_without_tensorrt_it_loads_and_offers_its_creator(checkout: Path) -> None:
    make(checkout, "plugin")
    library = ctypes.CDLL(str(checkout / "plugin" / "librediprune_plugin.so"))
    assert library.rediprune_is_registered() == 0
    assert creators(library) == 1


def test_with_tensorrt_it_asks_for_the_registry_when_loaded(checkout: Path) -> None:
    code = "int asked; void* getPluginRegistry(void) { ++asked; return 0; }"
    nvinfer = checkout / "tensorrt" / "lib" / "libnvinfer.so"
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libnvinfer.so.11", "-x", "c", "-", "-o", nvinfer]
    subprocess.run(command, input=code.encode(), check=True)
    make(checkout, "plugin")
    tensorrt = ctypes.CDLL(str(nvinfer))  # as Python's tensorrt has it: loaded before, and privately
    ctypes.CDLL(str(checkout / "plugin" / "librediprune_plugin.so"))
    assert ctypes.c_int.in_dll(tensorrt, "asked").value == 1


def test_the_proof_passes_its_build_time_part(checkout: Path) -> None:
    make(checkout, "proof")
    result = subprocess.run([checkout / "plugin" / "build" / "enqueue_proof", "200"], capture_output=True, text=True)
    assert result.returncode in (0, 2), result.stderr  # 2: no GPU here to enqueue on
