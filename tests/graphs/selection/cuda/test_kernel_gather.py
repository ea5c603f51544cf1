"""The gather kernel's code, compiled for the CPU, takes the rows that the indices name."""

import ctypes
from collections.abc import Callable

import pytest
import torch

pytestmark = pytest.mark.cuda

HostLibrary = Callable[[str], ctypes.CDLL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 5, 8, 64, 1030])
@pytest.mark.parametrize("offset", [0, 2])
def test_equals_torchs_gather(host_library: HostLibrary, dtype: torch.dtype, channels: int, offset: int) -> None:
    frames, patches, count = 3, 17, 6
    random = torch.Generator().manual_seed(channels)
    # Behind an offset the rows are not aligned to 16 bytes, whatever their length.
    features = torch.randn(offset + frames * patches * channels, generator=random).to(dtype)[offset:]
    features = features.view(frames, patches, channels)
    indices = torch.stack([torch.randperm(patches, generator=random)[:count].sort().values for _ in range(frames)])
    kept = torch.full((frames, count, channels), torch.nan, dtype=dtype)
    host_library("host_gather").host_gather(
        ctypes.c_void_p(features.data_ptr()),
        ctypes.c_void_p(indices.data_ptr()),
        frames,
        patches,
        count,
        channels * features.element_size(),
        32,
        ctypes.c_void_p(kept.data_ptr()),
    )
    assert torch.equal(kept, features.gather(1, indices[:, :, None].expand(-1, -1, channels)))
