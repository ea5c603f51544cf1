"""The Ray that work is spread over: one that runs already, or one started on this machine for as long as it takes."""

import os
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
        address: of a cluster; "auto" is the one that this machine is part of; None starts one on this machine's loopback,
            which ends with the block.
        torch: whether the processes that Ray starts may import PyTorch, which takes seconds and 300 MB where it is installed; only `eager` needs it.

    Raises:
        RedipruneError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # says nothing of this machine to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUs stay visible to who asked for none
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if not torch:
        settings["runtime_env"] = {"worker_process_setup_hook": f"{__name__}.hide_torch"}
    try:
        ray.init(address=address, **settings)
    except ConnectionError as error:
        raise RedipruneError(
            f"there is no Ray cluster at '{address}' ({str(error).splitlines()[0][:200]}); start one with `ray start --head`"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def hide_torch() -> None:
    """Keep transformers from importing PyTorch in a process that Ray starts."""
    sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]
