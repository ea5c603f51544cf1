"""`select_tokens` on CUDA tensors by the kernels: same arguments, same results up to rounding."""

import torch
from torch import Tensor

from ..reference import select_by
from .launcher import load_kernels


def select_tokens_cuda(
    features: Tensor, query: Tensor, keep: float | int = 0.15, alpha: float = 0.5, tau: float = 0.0
) -> Tensor:
    """Indices of the visual tokens to keep, by three launches: token scores, similarity, greedy choice.

    Args:
        features: [P, C] or [F, P, C], float16, bfloat16 or float32, on a CUDA device.
        query: [D], on the same device.
        keep, alpha, tau: as in `reference.select_tokens`.

    Returns:
        [K] or [F, K], int64, ascending, on the same device. Nothing is synchronised.

    Raises:
        ValueError: a shape, keep, alpha or tau out of range, or tensors that are not on one CUDA device.
        GpuUnavailable: no usable GPU, driver or package.
    """
    return select_by(score_tokens_cuda, max_min_select_cuda, features, query, keep, alpha, tau)


def score_tokens_cuda(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of the tokens [F, P, C] with the query [C] and with one another, by the kernels.

    Returns:
        Relevance [F, P] and similarity [F, P, P], float32. Similarity equals its transpose; identical tokens have the
        same scores, and a similarity of exactly 1 to each other.

    Raises:
        ValueError: the tensors are not on one CUDA device.
    """
    _check_on_one_gpu(features=features, query=query)
    features, query = features.contiguous(), query.float().contiguous()
    frames, patches, channels = features.shape
    workspace = torch.empty(2, frames, patches, device=features.device)
    relevance = torch.empty(frames, patches, device=features.device)
    similarity = torch.empty(frames, patches, patches, device=features.device)
    load_kernels(features.device.index).score(
        features.data_ptr(),
        query.data_ptr(),
        workspace.data_ptr(),
        relevance.data_ptr(),
        similarity.data_ptr(),
        frames=frames,
        patches=patches,
        channels=channels,
        dtype=str(features.dtype).removeprefix("torch."),
        stream=torch.cuda.current_stream(features.device).cuda_stream,
    )
    return relevance, similarity


def max_min_select_cuda(similarity: Tensor, relevance: Tensor, count: int, alpha: float) -> Tensor:
    """`reference.max_min_select` by the kernel: equal to it on the same float32 scores, to the bit.

    Args:
        similarity: [F, P, P], on a CUDA device.
        relevance: [F, P], on the same device; −inf marks a token that may not be picked.
        count: K, at most the number of tokens with finite relevance.
        alpha: α, the weight of relevance.

    Returns:
        [F, K] int64, ascending, on the same device.

    Raises:
        ValueError: the tensors are not on one CUDA device, or a size is out of range.
    """
    _check_on_one_gpu(similarity=similarity, relevance=relevance)
    similarity, relevance = similarity.float().contiguous(), relevance.float().contiguous()
    frames, patches = relevance.shape
    indices = torch.empty(frames, count, dtype=torch.int64, device=relevance.device)
    load_kernels(relevance.device.index).select(
        similarity.data_ptr(),
        relevance.data_ptr(),
        indices.data_ptr(),
        frames=frames,
        patches=patches,
        count=count,
        alpha=alpha,
        stream=torch.cuda.current_stream(relevance.device).cuda_stream,
    )
    return indices


def _check_on_one_gpu(**tensors: Tensor) -> None:
    """The kernels are given addresses: on any other device they would be read as if they were this GPU's."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1 or not all(tensor.is_cuda for tensor in tensors.values()):
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"the kernels need tensors on one CUDA device, not {found}: use select_tokens elsewhere")
