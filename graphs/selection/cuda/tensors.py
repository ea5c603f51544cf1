"""`select_tokens` on CUDA tensors by the kernels: same arguments, same results up to rounding."""

import torch
from torch import Tensor

from ..counts import check_weights, num_kept
from ..query_vector import match_width
from ..reference import candidate_counts, drop_below
from .launcher import load_kernels


def select_tokens_cuda(
    features: Tensor, query: Tensor, keep: float | int = 0.15, alpha: float = 0.5, tau: float = 0.0
) -> Tensor:
    """Indices of the visual tokens to keep, by three launches: token scores, similarity, greedy choice.

    Arguments and errors are those of `rediprune.graphs.selection.reference.select_tokens`; the features must be
    float16, bfloat16 or float32 on a CUDA device.

    Returns:
        [F, K] or [K], int64, ascending, on the same device. Nothing is synchronised.
    """
    if features.ndim == 2:
        return select_tokens_cuda(features[None], query, keep, alpha, tau)[0]
    if features.ndim != 3:
        raise ValueError(f"features must be [P, C] or [F, P, C], not {list(features.shape)}")
    if query.ndim != 1:
        raise ValueError(f"query must be [D], not {list(query.shape)}")
    check_weights(alpha, tau)
    frames, patches, width = features.shape
    count = num_kept(patches, keep)
    if count == patches:
        return torch.arange(patches, device=features.device).expand(frames, patches).clone()
    relevance, similarity = score_tokens_cuda(features, match_width(query.float(), width))
    if tau > 0:
        relevance = drop_below(relevance, candidate_counts(relevance, count, tau))
    return max_min_select_cuda(similarity, relevance, count, alpha)


def score_tokens_cuda(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance [F, P] and similarity [F, P, P], float32, of features [F, P, C] on a GPU and a query [C]."""
    _check_on_one_gpu(features=features, query=query)
    features, query = features.contiguous(), query.float().contiguous()
    frames, patches, channels = features.shape
    scores = torch.empty(2, frames, patches, device=features.device)  # inverse norms, relevance
    similarity = torch.empty(frames, patches, patches, device=features.device)
    load_kernels(features.device.index).score(
        features.data_ptr(),
        query.data_ptr(),
        scores[0].data_ptr(),
        scores[1].data_ptr(),
        similarity.data_ptr(),
        frames=frames,
        patches=patches,
        channels=channels,
        dtype=str(features.dtype).removeprefix("torch."),
        stream=torch.cuda.current_stream(features.device).cuda_stream,
    )
    return scores[1], similarity


def max_min_select_cuda(similarity: Tensor, relevance: Tensor, count: int, alpha: float) -> Tensor:
    """`max_min_select` by the kernel: equal to it on the same float32 scores, to the bit."""
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
