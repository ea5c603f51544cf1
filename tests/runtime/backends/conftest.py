"""What the tests of the backends share: the stand-ins for a GPU."""

from collections.abc import Callable
from types import ModuleType

import pytest
from rediprune.runtime.backends.device import Stream

from ...support import fake_gpu as stand_ins


@pytest.fixture(scope="session")
def fake_gpu() -> ModuleType:
    """`support.fake_gpu`: the CUDA runtime, the driver, nvinfer and the kernels, on the host."""
    return stand_ins


@pytest.fixture(scope="session")
def stream() -> Callable[[], Stream]:
    """A new stream of a new GPU."""
    return lambda: Stream(stand_ins.Cuda(), stand_ins.Driver)
