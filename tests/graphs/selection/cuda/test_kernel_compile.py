"""The kernels compile for every architecture, ahead of time and at run time, without spills."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from rediprune.graphs.selection.cuda import launcher
from rediprune.graphs.selection.cuda.tensors import max_min_select_cuda, select_tokens_cuda

pytestmark = pytest.mark.cuda

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (the CUDA toolkit)")
@pytest.mark.parametrize("arch", [pytest.param("sm_80", marks=pytest.mark.smoke), *ARCHITECTURES[1:]])
@pytest.mark.parametrize("source", launcher.SOURCES)
def test_nvcc_compiles_without_spills(sources: Path, tmp_path: Path, source: str, arch: str) -> None:
    flags = [f"-arch={arch}", "-cubin", "-Werror=all-warnings", "-Xptxas=-v", "-o", tmp_path / "k.cubin"]
    report = subprocess.run(["nvcc", *flags, sources / source], capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    spills = re.findall(r"(\d+) bytes spill stores", report.stderr)
    assert spills and set(spills) == {"0"}, report.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (the CUDA toolkit)")
def test_the_greedy_kernel_rounds_every_operation(sources: Path, tmp_path: Path) -> None:
    # As the eager reference does: a fused multiply-add, or one that ptxas may make, would round otherwise.
    ptx = tmp_path / "maxmin.ptx"
    subprocess.run(["nvcc", "-arch=compute_80", "-ptx", "-o", ptx, sources / "maxmin.cu"], check=True)
    operations = set(re.findall(r"\b(?:add|sub|mul|fma)(?:\.\w+)*\.f32\b", ptx.read_text()))
    assert operations == {"add.rn.f32", "mul.rn.f32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nvrtc_compiles_and_exports_the_kernels(arch: str) -> None:
    pytest.importorskip("cuda.core", reason="needs cuda-core and NVRTC")
    try:
        modules = launcher.compile_kernels(arch)
    except launcher.GpuUnavailable as error:
        pytest.skip(str(error))
    assert b"maxmin_select" in modules["maxmin.cu"].code
    for dtype in launcher.DTYPES:
        assert f"token_scores_{dtype}".encode() in modules["scores.cu"].code
        assert f"similarity_fma_{dtype}".encode() in modules["scores.cu"].code
        assert f"clip_compare_{dtype}".encode() in modules["clip.cu"].code
    assert b"similarity_mma_bfloat16" in modules["scores.cu"].code


def test_no_includes_beyond_our_own(sources: Path) -> None:
    headers = {path.name for path in sources.glob("*.cuh")}
    assert {"clip.cuh", "greedy.cuh", "half.cuh", "scores.cuh"} == headers
    for source in (*launcher.SOURCES, *headers):
        text = (sources / source).read_text(encoding="utf-8")
        assert set(re.findall(r"#include (\S+)", text)) <= {f'"{name}"' for name in headers}, source


def test_a_machine_without_gpu_or_packages_says_so_in_one_line() -> None:
    with pytest.raises(launcher.GpuUnavailable) as error:
        launcher.load_kernels(63)  # no machine has so many GPUs
    message = str(error.value)
    assert "\n" not in message
    assert ("GPU 63" if importlib.util.find_spec("cuda") else "pip install") in message


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"frames": 1, "patches": 4, "count": 5}, "between 1 and the 4 tokens"),
        ({"frames": 1, "patches": 4, "count": 0}, "between 1 and the 4 tokens"),
        ({"frames": 1, "patches": launcher.MAX_PATCHES + 1, "count": 1}, "1 to 8192 tokens"),
        ({"frames": 0, "patches": 4, "count": 1}, "frames must lie"),
    ],
)
def test_sizes_out_of_range_are_refused_before_the_gpu_is_touched(sizes: dict[str, int], said: str) -> None:
    kernels = object.__new__(launcher.SelectionKernels)  # no GPU here to load them on
    with pytest.raises(ValueError, match=said):
        kernels.select(0, 0, 0, **sizes)


def test_tensors_off_the_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match="features on cpu"):
        select_tokens_cuda(torch.ones(2, 8, 4), torch.ones(4), keep=2)
    with pytest.raises(ValueError, match="similarity on cpu"):
        max_min_select_cuda(torch.ones(1, 8, 8), torch.ones(1, 8), 2, 0.5)
