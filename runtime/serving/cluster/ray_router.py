"""The only module that uses Ray Serve's request-router API, which Ray 2.60 marks alpha.

A request goes to a replica that knows its picture, or to the next ones on the ring where that is full.
"""

import hashlib
import json
from collections import Counter
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle

from .picture_homes import PictureHomes

_ROUTER = f"{__name__}.PictureRouter"
_MEDIA = ("image_url", "video_url", "file")


class PictureRouter(ConsistentHashRouter):
    """Routes requests by `PictureHomes`."""

    def initialize_state(self, *, batch: int, **kwargs: Any) -> None:
        """See Ray's `RequestRouter`."""
        super().initialize_state(**kwargs)
        self._homes: PictureHomes[Any] = PictureHomes(batch)
        self._sent: Counter[Any] = Counter()  # to each replica, not answered yet

    def on_send_request(self, replica_id: Any) -> None:
        """See Ray's `RequestRouter`."""
        super().on_send_request(replica_id)
        self._sent[replica_id] += 1

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """See Ray's `RequestRouter`."""
        super().on_request_completed(replica_id, internal_request_id)
        self._sent[replica_id] -= 1
        if self._sent[replica_id] <= 0:  # below: Ray tells the end of a request too that could not be sent
            del self._sent[replica_id]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """See Ray's `RequestRouter`."""
        super().on_request_routed(pending_request, replica_id, result)
        self._homes.took(_key(pending_request), replica_id)

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """The replicas to try, best first, each in a list of its own."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or not ranks:
            return ranks
        replicas = self.curr_replicas
        ring = [replica.replica_id for (replica,) in ranks]
        ranked = self._homes.ranked(_key(pending_request), ring, replicas, self._under_way)
        return [[replicas[name]] for name in ranked]

    def _under_way(self, replica: Any) -> int:
        """Requests at a replica: what it said last, other fronts' among them, which Ray forgets after 10 s; or this front's."""
        return max(self._sent[replica], self.replica_queue_len_cache.get(replica) or 0)


def _key(pending_request: Any) -> str | None:
    """The key that `routed` gave a request; Ray has an empty text where there is none."""
    return pending_request.metadata.session_id or None


def by_picture(batch: int) -> RequestRouterConfig:
    """The configuration of a deployment whose requests are routed by key.

    Args:
        batch: requests that a replica decodes together.
    """
    router: Any = _ROUTER  # a name is taken too, though its types do not say so
    return RequestRouterConfig(
        request_router_class=router,
        request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 2, "batch": batch},
    )


def routed(handle: DeploymentHandle, key: str | None, model: str) -> DeploymentHandle:
    """A handle whose calls stream, go by this key and are for this model.

    Args:
        handle: of a deployment.
        key: of the request; None: any replica will do.
        model: which bundle the replica must have loaded.
    """
    options: dict[str, Any] = {"stream": True, "multiplexed_model_id": model}
    if key is not None:
        options["session_id"] = key
    return handle.options(**options)


def picture_key(body: Any) -> str | None:
    """What a chat request is routed by: a hash of its first picture or clip; None where it has none.

    All questions of a dialogue about a picture have the same key, and so has the picture in another dialogue: its features are
    where they were made, and the cache of the prompt's beginning is at one of its homes.
    """
    for message in _list(body, "messages"):
        for part in _list(message, "content"):
            if isinstance(part, dict) and part.get("type") in _MEDIA:
                held = part.get(part["type"])
                url = (held.get("url") or held.get("file_data")) if isinstance(held, dict) else held
                content = url if isinstance(url, str) else json.dumps(url)
                return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return None


def _list(holder: Any, name: str) -> list[Any]:
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, list) else []
