"""The Ray that work is spread over: one that runs already, or one started on this machine for as long as it takes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from ..errors import RedipruneError


@contextmanager
def ray_cluster(address: str | None, workers: Mapping[str, str] | None = None, **options: Any) -> Iterator[None]:
    """Be connected to a Ray cluster within the block.

    Args:
        address: of a cluster; "auto" is the one that this machine is part of; None starts one on this machine's loopback,
            which ends with the block.
        workers: environment variables of the processes that Ray starts.
        options: of `ray.init`.

    Raises:
        RedipruneError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # says nothing of this machine to anybody
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # a process without GPUs of its own sees what it saw
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(workers or {})}
    settings["runtime_env"] = {"env_vars": {name: value for name, value in environment.items() if value}}
    try:
        ray.init(address=address, **settings | options)
    except ConnectionError as error:
        raise RedipruneError(
            f"there is no Ray cluster at '{address}' ({str(error).splitlines()[0][:200]}); start one with `ray start --head`"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
