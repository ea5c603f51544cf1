"""Launches the selection kernels on raw device pointers and a stream, compiled by NVRTC at first use.

For the places where a TensorRT plugin cannot be: between engines of TensorRT-RTX or ONNX Runtime CUDA, and in
eager CUDA pipelines (tensors.py). Needs `cuda-core` and NVRTC (`pip install "cuda-core[cu13]"`), imported on
first use.
"""

import ctypes
import importlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..counts import check_clip

SOURCES = ("maxmin.cu", "scores.cu", "gather.cu", "clip.cu")
DTYPES = ("float16", "bfloat16", "float32")
MAX_PATCHES = 8192  # max_patches of maxmin.cu
MIN_CAPABILITY = (8, 0)
CLIP_STATE = 32  # bytes of clip.cuh's `Clip`
CLIP_MADE = 16  # bytes before its `made`

_TILE = {"mma": 64, "fma": 32}  # of scores.cu
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ClipSettings:
    """What is asked of the choice over a whole clip; see `clip_reference.select_clip_tokens`.

    Attributes:
        count: tokens kept of each frame on average.
        alpha: weight of relevance.
        least: tokens kept of each frame at least.
        threshold: the score below which no token is worth keeping; −inf is off.
    """

    count: int
    alpha: float = 0.5
    least: int = 1
    threshold: float = -math.inf


class GpuUnavailable(RuntimeError):
    """No GPU, or not the packages, that the selection kernels need. The message says what to do."""


def compile_kernels(arch: str) -> dict[str, Any]:
    """Compile every kernel with NVRTC, which needs no GPU.

    Args:
        arch: the architecture to compile for, as in "sm_90".

    Returns:
        `cuda.core.ObjectCode` by name of the source.

    Raises:
        GpuUnavailable: `cuda-core` or NVRTC is not installed.
    """
    core = cuda_core()
    options = core.ProgramOptions(std="c++17", arch=arch, include_path=str(_HERE))
    try:
        return {
            name: core.Program((_HERE / name).read_text(encoding="utf-8"), "c++", options).compile("cubin")
            for name in SOURCES
        }
    except RuntimeError as error:
        if "nvrtc" in str(error).lower() and "not found" in str(error).lower():
            raise GpuUnavailable('NVRTC is missing: pip install "cuda-core[cu13]"') from error
        raise


class SelectionKernels:
    """The kernels, compiled and loaded on one device. Get it with `load_kernels`.

    Every method only enqueues on `stream`, a raw `cudaStream_t`, so it may be captured in a CUDA graph.
    Pointers are device addresses of contiguous tensors on that device.
    """

    def __init__(self, ordinal: int) -> None:
        self._core = cuda_core()
        device = self._device = self._core.Device(ordinal)
        capability = tuple(device.compute_capability)
        if capability < MIN_CAPABILITY:
            raise GpuUnavailable(
                f"the selection kernels need compute capability 8.0 or later, GPU {ordinal} has "
                f"{capability[0]}.{capability[1]}: select on the CPU or with eager PyTorch instead"
            )
        self._modules = compile_kernels(f"sm_{capability[0]}{capability[1]}")
        self._kernels: dict[str, Any] = {}

    def select(
        self,
        similarity: int,
        relevance: int,
        indices: int,
        *,
        frames: int,
        patches: int,
        count: int,
        alpha: float = 0.5,
        alpha_tensor: int = 0,
        stream: int = 0,
    ) -> None:
        """The greedy choice: similarity [F, P, P], relevance [F, P] float32 → indices [F, count] int64.

        Args:
            similarity, relevance, indices: addresses; a relevance of −inf marks a token that may not be picked.
            frames, patches, count: F, P, K.
            alpha: weight of relevance, unless `alpha_tensor` points to a float32 on the device.
            alpha_tensor: address of α; 0 for none.
            stream: a `cudaStream_t`.

        Raises:
            ValueError: a size out of range.
        """
        _check_sizes(frames, patches)
        if not 1 <= count <= patches:
            raise ValueError(f"count must lie between 1 and the {patches} tokens of a frame, not {count}")
        self._launch(
            "maxmin.cu",
            "maxmin_select",
            (frames, 1, 1),
            block_size(patches),
            stream,
            (similarity, relevance, alpha_tensor, ctypes.c_float(alpha), _int(patches), _int(count), indices),
        )

    def score(
        self,
        features: int,
        query: int,
        workspace: int,
        relevance: int,
        similarity: int,
        *,
        frames: int,
        patches: int,
        channels: int,
        dtype: str,
        stream: int = 0,
    ) -> None:
        """Cosines in float32: features [F, P, C], query [C] float32 → relevance [F, P], similarity [F, P, P].

        float16 and bfloat16 features use the tensor cores when C is a multiple of 8 and the features are
        16-byte aligned, else ordinary FMAs.

        Args:
            features, query, relevance, similarity: addresses.
            workspace: address of [2, F, P] float32, for the inverse norms and the fingerprints of the tokens.
            frames, patches, channels: F, P, C.
            dtype: of the features, one of `DTYPES`.
            stream: a `cudaStream_t`.

        Raises:
            ValueError: a size or the dtype out of range.
        """
        _check_sizes(frames, patches)
        _check_features(channels, dtype)
        tokens = frames * patches
        inverse_norm, fingerprint = workspace, workspace + 4 * tokens
        self._launch(
            "scores.cu",
            f"token_scores_{dtype}",
            (-(-tokens // 8), 1, 1),
            256,
            stream,
            (features, query, _int(tokens), _int(channels), inverse_norm, relevance, fingerprint),
        )
        route = "mma" if dtype != "float32" and channels % 8 == 0 and features % 16 == 0 else "fma"
        tiles = -(-patches // _TILE[route])
        self._launch(
            "scores.cu",
            f"similarity_{route}_{dtype}",
            (tiles, tiles, frames),
            128,
            stream,
            (features, inverse_norm, relevance, fingerprint, _int(patches), _int(channels), similarity),
        )

    def select_clip(
        self,
        features: int,
        query: int,
        workspace: int,
        indices: int,
        *,
        frames: int,
        patches: int,
        channels: int,
        dtype: str,
        settings: ClipSettings,
        stream: int = 0,
    ) -> None:
        """The choice over a whole clip: features [F, P, C], query [C] float32 → indices [F · count] int64.

        Where the threshold ends the choice, fewer are written: as many as the workspace says at `CLIP_MADE`.

        Args:
            features, query, indices: addresses.
            workspace: address of `clip_workspace(F, P)` bytes; begins with the clip's state.
            frames, patches, channels: F, P, C.
            dtype: of the features, one of `DTYPES`.
            settings: what is asked for.
            stream: a `cudaStream_t`.

        Raises:
            ValueError: a size, setting or the dtype out of range.
        """
        _check_sizes(frames, patches)
        _check_features(channels, dtype)
        check_clip(settings.count, settings.least, settings.threshold)
        if settings.count > patches:
            raise ValueError(f"count must lie between 1 and the {patches} tokens of a frame, not {settings.count}")
        tokens, total = frames * patches, frames * settings.count
        clip, owed = workspace, workspace + CLIP_STATE
        inverse_norm, relevance, fingerprint, nearest = (owed + 4 * frames + 4 * tokens * n for n in range(4))
        alpha, threshold = ctypes.c_float(settings.alpha), ctypes.c_float(settings.threshold)
        warps = -(-tokens // 8)

        def launch(name: str, blocks: int, threads: int, *arguments: Any, source: str = "clip.cu") -> None:
            self._launch(source, name, (blocks, 1, 1), threads, stream, arguments)

        scores = (features, query, _int(tokens), _int(channels), inverse_norm, relevance, fingerprint)
        launch(f"token_scores_{dtype}", warps, 256, *scores, source="scores.cu")
        launch("clip_begin", 1, 1, clip, owed, _int(frames), _int(settings.least))
        launch("clip_offer", -(-tokens // 256), 256, clip, relevance, nearest, _int(tokens))
        given = (clip, owed, nearest, features, inverse_norm, relevance, fingerprint, alpha)
        for pick in range(total):
            launch("clip_choose", 1, 1, clip, owed, nearest, relevance, alpha, threshold, _int(patches), _int(total))
            if pick + 1 < total:
                sizes = (_int(patches), _int(channels), _int(tokens))
                launch(f"clip_compare_{dtype}", warps, 256, *given, *sizes)
        launch("clip_collect", 1, 1024, nearest, _int(tokens), indices)

    def gather(
        self,
        features: int,
        indices: int,
        kept: int,
        *,
        frames: int,
        patches: int,
        count: int,
        row_bytes: int,
        stream: int = 0,
    ) -> None:
        """The chosen rows: features [F, P, row_bytes], indices [F, count] int64 → kept [F, count, row_bytes].

        Args:
            features, indices, kept: addresses.
            frames, patches, count: F, P, K.
            row_bytes: size of one token in bytes.
            stream: a `cudaStream_t`.

        Raises:
            ValueError: a size out of range.
        """
        _check_frames(frames)
        self._launch(
            "gather.cu",
            "gather_rows",
            (count, frames, 1),
            128,
            stream,
            (features, indices, _int(patches), _int(count), _int(row_bytes), kept),
        )

    def _launch(
        self,
        source: str,
        name: str,
        grid: tuple[int, int, int],
        block: int,
        stream: int,
        arguments: tuple[Any, ...],
    ) -> None:
        self._device.set_current()
        if name not in self._kernels:
            self._kernels[name] = self._modules[source].get_kernel(name)
        config = self._core.LaunchConfig(grid=grid, block=block)
        self._core.launch(self._core.Stream.from_handle(stream), config, self._kernels[name], *arguments)


@cache
def load_kernels(ordinal: int = 0) -> SelectionKernels:
    """The kernels on one GPU, compiled once per process.

    Args:
        ordinal: number of the GPU.

    Raises:
        GpuUnavailable: no usable GPU, driver or package.
    """
    core = cuda_core()
    try:
        core.Device(ordinal).set_current()
    except Exception as error:  # the driver's own exception types differ between versions of cuda-core
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GpuUnavailable(
            f"GPU {ordinal} cannot be used ({reason}): check nvidia-smi, or select on the CPU"
        ) from error
    return SelectionKernels(ordinal)


def block_size(patches: int) -> int:
    """Threads per block of `maxmin_select`: one per token, whole warps, at most 1024."""
    return min(1024, 32 * -(-patches // 32))


def clip_workspace(frames: int, patches: int) -> int:
    """Bytes that `SelectionKernels.select_clip` works in; the int32 at `CLIP_MADE` says how many tokens were picked."""
    return CLIP_STATE + 4 * frames + 4 * 4 * frames * patches


def _check_features(channels: int, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"features must be one of {', '.join(DTYPES)}, not {dtype}")
    if channels < 1:
        raise ValueError(f"channels must be positive, not {channels}")


def _check_frames(frames: int) -> None:
    if not 1 <= frames <= 65535:
        raise ValueError(f"frames must lie between 1 and 65535, not {frames}: select in several calls")


def _check_sizes(frames: int, patches: int) -> None:
    _check_frames(frames)
    if not 1 <= patches <= MAX_PATCHES:
        raise ValueError(f"a frame may have 1 to {MAX_PATCHES} tokens, not {patches}: use eager PyTorch")


def _int(value: int) -> ctypes.c_int32:
    return ctypes.c_int32(value)


def cuda_core() -> Any:
    """The `cuda.core` module, imported on first use.

    Raises:
        GpuUnavailable: it is not installed.
    """
    for name in ("cuda.core", "cuda.core.experimental"):  # the second until cuda-core 0.5
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "Program"):
            return module
    raise GpuUnavailable('the CUDA selection kernel needs cuda-core: pip install "cuda-core[cu13]"')
