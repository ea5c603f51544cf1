"""The Ray that work is spread over: one that runs already, or one started on this machine for as long as it takes."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ...errors import RedipruneError


@contextmanager
def ray_cluster(address: str | None, *, torch: bool = False) -> Iterator[None]:
    """Be connected to a Ray cluster within the block.

    Args:
        address: of a cluster; "auto" is the one that this machine is part of; None starts one on this machine, which
            ends with the block.
        torch: whether the processes that Ray starts may import PyTorch, which takes seconds and 300 MB where it is installed;
            only `eager` needs it.

    Raises:
        RedipruneError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # says nothing of this machine to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUs stay visible to who asked for none
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        settings["include_dashboard"] = False
    if not torch:
        settings["runtime_env"] = {"worker_process_setup_hook": f"{__name__}.hide_torch"}
    try:
        _reach(address)
        # Without "local" Ray would go by RAY_ADDRESS, or by what the last cluster of this machine left in its files.
        ray.init(address=address or "local", **settings)
    except OSError as error:
        raise RedipruneError(
            f"there is no Ray cluster at '{address}' ({_reason(error)}); start one with `ray start --head`"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """See that somebody listens where a cluster is said to be: Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _reason(error: OSError) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def hide_torch() -> None:
    """Keep transformers from importing PyTorch in a process that Ray starts."""
    sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]
