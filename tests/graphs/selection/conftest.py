"""The kernels' code compiled for the CPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from rediprune.graphs.selection import cuda
from torch import Tensor


@pytest.fixture(scope="session")
def sources() -> Path:
    """The folder of the kernels."""
    return Path(cuda.__file__).parent


@pytest.fixture(scope="session")
def host_library(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """A source of this folder, which includes a kernel's code, compiled for the CPU."""

    @cache
    def compiled(name: str) -> ctypes.CDLL:
        if shutil.which("g++") is None:
            pytest.skip("needs g++ to compile the kernel's code for the CPU")
        library = tmp_path_factory.mktemp("host") / f"{name}.so"
        flags = [
            "-std=c++20",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",  # CUDA's "unroll"
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            "-pthread",
        ]
        code = Path(__file__).parent / "cuda" / f"{name}.cpp"
        subprocess.run(["g++", *flags, "-I", sources, code, "-o", library], check=True)
        return ctypes.CDLL(str(library))

    return compiled


@pytest.fixture(scope="session")
def host_select(host_library: Callable[[str], ctypes.CDLL]) -> Callable[..., Tensor]:
    """`max_min_select` by the kernel's code, on `threads` CPU threads. Unwritten outputs stay −1."""
    library = host_library("host_team")

    def select(similarity: Tensor, relevance: Tensor, count: int, alpha: float, threads: int = 1) -> Tensor:
        similarity, relevance = similarity.contiguous(), relevance.contiguous()
        frames, patches = relevance.shape
        indices = torch.full((frames, count), -1, dtype=torch.int64)
        library.host_select(
            ctypes.c_void_p(similarity.data_ptr()),
            ctypes.c_void_p(relevance.data_ptr()),
            ctypes.c_float(alpha),
            frames,
            patches,
            count,
            ctypes.c_void_p(indices.data_ptr()),
            threads,
        )
        return indices

    return select


@pytest.fixture(scope="session")
def host_score(host_library: Callable[[str], ctypes.CDLL]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`score_tokens` by the kernels' code: float32 features [F, P, C] and query [C]."""
    library = host_library("host_scores")

    def score(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        features, query = features.contiguous(), query.contiguous()
        frames, patches, channels = features.shape
        relevance = torch.full((frames, patches), torch.nan)
        similarity = torch.full((frames, patches, patches), torch.nan)
        library.host_score(
            ctypes.c_void_p(features.data_ptr()),
            ctypes.c_void_p(query.data_ptr()),
            frames,
            patches,
            channels,
            ctypes.c_void_p(relevance.data_ptr()),
            ctypes.c_void_p(similarity.data_ptr()),
        )
        return relevance, similarity

    return score
