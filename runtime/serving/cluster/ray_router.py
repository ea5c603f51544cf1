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
_REMEMBERED = 100_000  # keys
_MEDIA = ("image_url", "video_url", "file")


class BoundedHashRouter(ConsistentHashRouter):
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350).

    Pictures are asked about unequally often, so that hashing alone leaves one replica idle while another has a queue. What
    comes for the first time passes by a replica that has its share under way; from then on it stays where it went, where
    its features are. Where that has a whole batch more under way than another, the other gets it too, and the picture is
    at home in both.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """See Ray's `RequestRouter`; `batch` is how many requests a replica decodes together."""
        super().initialize_state(**kwargs)
        self._batch: int = kwargs["batch"]
        self._homes: LRUCache[str, list[Any]] = LRUCache(_REMEMBERED)  # of a key, replicas
        self._sent = Counter[Any]()  # by this router and not yet answered

    def on_send_request(self, replica_id: Any) -> None:
        """See Ray's `RequestRouter`."""
        super().on_send_request(replica_id)
        self._sent[replica_id] += 1

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """See Ray's `RequestRouter`."""
        super().on_request_completed(replica_id, internal_request_id)
        self._sent[replica_id] = max(0, self._sent[replica_id] - 1)

    def update_replicas(self, replicas: list[Any]) -> None:
        """See Ray's `RequestRouter`."""
        super().update_replicas(replicas)
        self._sent = Counter({each.replica_id: self._sent[each.replica_id] for each in replicas})

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """The replicas to try, best first, each in a list of its own."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        key = pending_request.metadata.session_id if pending_request is not None else None
        if not key or not ranks:
            return ranks
        loads = [self._under_way(rank[0].replica_id) for rank in ranks]
        homes = self._homes.setdefault(key, [])
        mean = (sum(self._under_way(each.replica_id) for each in candidate_replicas) + 1) / len(candidate_replicas)
        ranks = by_preference(ranks, loads, [rank[0].replica_id in homes for rank in ranks], mean, self._batch)
        if ranks[0][0].replica_id not in homes:
            homes.append(ranks[0][0].replica_id)
        return ranks

    def _under_way(self, replica: Any) -> int:
        # What a replica said last, other fronts' requests included, is forgotten after ten seconds.
        return max(self._sent[replica], self.replica_queue_len_cache.get(replica) or 0)


def by_preference(ring: list[Any], loads: list[int], at_home: list[bool], mean: float, batch: int) -> list[Any]:
    """Replicas in the order in which a key should try them.

    Args:
        ring: replicas in the order of the ring.
        loads: requests under way at each.
        at_home: whether the key has been there.
        mean: requests under way at all replicas, this one included, by their number.
        batch: how many requests a replica decodes together.
    """
    found = list(zip(ring, loads, at_home, strict=True))
    homes = sorted((each for each in found if each[2]), key=lambda each: each[1])
    if not homes:
        return within_bound(ring, loads, mean)
    if homes[0][1] >= min(loads) + batch:
        return [each[0] for each in sorted(found, key=lambda each: each[1])]
    return [each[0] for each in homes] + [each[0] for each in found if not each[2]]


def within_bound(ranks: list[Any], loads: list[int], bound: float) -> list[Any]:
    """Those with fewer requests under way than the bound first, else in the order given.

    Args:
        ranks: in the order of the ring.
        loads: requests under way at each.
        bound: how many are too many.
    """
    return [rank for _, rank in sorted(zip(loads, ranks, strict=True), key=lambda pair: pair[0] >= math.ceil(bound))]


def consistent_hashing(batch: int) -> RequestRouterConfig:
    """The configuration of a deployment whose requests are routed by key.

    Args:
        batch: how many requests a replica decodes together.
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
