"""How the server is spread over a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RedipruneError
from ..load_models import Loading
from ..serve_settings import ServeSettings


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each takes.

    Attributes:
        replicas: at least.
        max_replicas: at most; more than `replicas` lets Ray Serve add some under load.
        target: requests under way on each, above which one is added.
        cpus, gpus: of each replica.
        models: bundles that a replica has loaded at most.
        fronts: processes that take the clients' connections.
        split: replicas of the language stage, apart from those of the others; 0: every replica runs all stages.
        patience: seconds that a health check may take; a replica that fails three is ended.
    """

    replicas: int = 1
    max_replicas: int = 1
    target: float = 4.0
    cpus: float = 1.0
    gpus: float = 0.0
    models: int = 2
    fronts: int = 1
    split: int = 0
    patience: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.max_replicas:
            raise RedipruneError(
                f"replicas must be from 1 to max_replicas, not {self.replicas} with {self.max_replicas} at most"
            )
        for name in ("target", "cpus", "patience", "models", "fronts"):
            if getattr(self, name) <= 0:
                raise RedipruneError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Spread:
    """A server on a cluster; picklable, as every process of it gets it.

    Attributes:
        bundles: folders by the name that clients use; on every machine at the same place.
        loading: how they are loaded.
        settings: of the server.
        defaults: selection settings where a request says nothing.
        scale: how many processes there are.
    """

    bundles: Mapping[str, Path]
    loading: Loading
    settings: ServeSettings
    defaults: Mapping[str, Any]
    scale: Scale
