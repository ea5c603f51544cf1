"""The plugin's sources, in place of the kernels'."""

from pathlib import Path

import pytest
from rediprune.graphs.selection import tensorrt_plugin


@pytest.fixture(scope="session")
def sources() -> Path:
    """The folder of the plugin."""
    return Path(tensorrt_plugin.__file__).parent
