"""The only module that uses Ray Serve's request-router API, which Ray 2.60 marks alpha.

A request goes where its key's hash points, and next to it where that is busy, full or gone.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cachetools import LRUCache
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle

_ROUTER = f"{__name__}.BoundedHashRouter"
_SHARE, _CROWD = 1.0, 2.0  # times the mean of the requests under way at a replica
_REMEMBERED = 100_000  # keys
_MEDIA = ("image_url", "video_url", "file")


class BoundedHashRouter(ConsistentHashRouter):
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350).

    Pictures are asked about unequally often, so that hashing alone leaves one replica idle while another has a queue. What
    comes for the first time passes by a replica that has its share under way; from then on it stays where it went, where
    its features are, unless there is a crowd.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """See Ray's `RequestRouter`."""
        super().initialize_state(**kwargs)
        self._placed: LRUCache[str, Any] = LRUCache(_REMEMBERED)  # where a key went, by key

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """The replicas to try, best first, each in a list of its own."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        key = pending_request.metadata.session_id if pending_request is not None else None
        if not key or not ranks:
            return ranks
        under_way = {
            each.replica_id: self.replica_queue_len_cache.get(each.replica_id) or 0 for each in candidate_replicas
        }
        place = self._placed.get(key)
        if place not in under_way:  # its replica is gone: placed anew
            place = None
        ranks.sort(key=lambda rank: rank[0].replica_id != place)  # the ring's order behind it
        loads = [under_way.get(rank[0].replica_id, 0) for rank in ranks]
        mean = (sum(under_way.values()) + 1) / max(len(under_way), 1)
        ranks = within_bound(ranks, loads, mean * (_SHARE if place is None else _CROWD))
        if place is None:
            self._placed[key] = ranks[0][0].replica_id
        return ranks


def within_bound(ranks: list[Any], loads: list[int], bound: float) -> list[Any]:
    """Those with fewer requests under way than the bound first, else in the order given.

    Args:
        ranks: in the order of the ring.
        loads: requests under way at each.
        bound: how many are too many.
    """
    return [rank for _, rank in sorted(zip(loads, ranks, strict=True), key=lambda pair: pair[0] >= math.ceil(bound))]


def consistent_hashing() -> RequestRouterConfig:
    """The configuration of a deployment whose requests are routed by key."""
    router: Any = _ROUTER  # a name is taken too, though its types do not say so
    return RequestRouterConfig(
        request_router_class=router, request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 2}
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


class HotKeys:
    """Spreads a key that many ask for at once over several replicas: hashing alone would send them all to one.

    Args:
        limit: requests of one key that go to one replica at a time; the next go where another hash points.
    """

    def __init__(self, limit: int):
        self._limit, self._under_way = limit, Counter[str]()

    @contextmanager
    def spread(self, key: str | None) -> Iterator[str | None]:
        """The key to route by while a request is under way; None, which any replica takes, stays None."""
        if key is None:
            yield None
            return
        share = self._under_way[key] // self._limit
        self._under_way[key] += 1
        try:
            yield key if share == 0 else f"{key} {share}"
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]


def picture_key(body: Any) -> str | None:
    """What a chat request is routed by: a hash of its first picture or clip; None where it has none.

    All questions of a dialogue about a picture have the same key, and so has the picture in another dialogue: its features,
    and the cache of the prompt's beginning, are where they were made.
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
