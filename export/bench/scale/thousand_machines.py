"""A plan on paper for many machines: a simulation of routing and caches from measured service times.

    python -m rediprune.export.bench.scale.thousand_machines --machines 1,10,100,1000

Each machine is one queue. A request takes its processor for as long as was measured: the tower where the picture's features
are not there, selection, projection, prefill, and its share of the decoding steps that it is batched in. Pictures are asked
about as a power law says. What routing does to the hit rate, and to the queue of the machine that has the most asked picture,
is what is looked at; the network and the front are counted, not simulated.
"""

import argparse
import bisect
import hashlib
import heapq
import json
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ....runtime.serving.cluster.picture_homes import PictureHomes

VIRTUAL = 100  # points of a machine on the hash ring, as Ray Serve has them
FALLBACKS = 2  # machines that are tried after the first, likewise
TOLD = 10.0  # seconds for which a front believes what a machine told it, likewise
BATCH = 8  # answers that a machine decodes together


@dataclass(frozen=True)
class Service:
    """What a request takes, in seconds of one machine's processor.

    Attributes:
        vision: the tower, where the features are not there.
        rest: preprocessing, selection, projection and prefill.
        decode: a request's share of the decoding steps of its answer.
    """

    vision: float
    rest: float
    decode: float

    def seconds(self, hit: bool) -> float:
        """Service time of one request, in seconds; `hit` says whether its features are cached."""
        return (0.0 if hit else self.vision) + self.rest + self.decode


# Medians of docs/measurements: a 0.5 B decoder on two cores (bench-fast, serving), and 7B on an H100 (gpu-7b; its decoding step
# is taken to serve eight answers, as it does on the CPU, which was not measured there).
MEASURED = {
    "0.5 B, two cores": Service(vision=0.135, rest=0.100, decode=0.230),
    "7B, H100": Service(vision=0.0056, rest=0.0186, decode=32 * 0.0145 / 8),
}


@dataclass
class Machine:
    """A queue, and the pictures whose features it holds."""

    free: float = 0.0
    pictures: "OrderedDict[int, None]" = field(default_factory=OrderedDict)

    def holds(self, picture: int, most: int) -> bool:
        """Whether a picture's features are there; they are now."""
        hit = picture in self.pictures
        self.pictures[picture] = None
        self.pictures.move_to_end(picture)
        if len(self.pictures) > most:
            self.pictures.popitem(last=False)
        return hit


@dataclass(frozen=True)
class Found:
    """What clients saw.

    Attributes:
        hit_rate: share of the requests whose features were there.
        median, late: seconds that a request waited, the median and the 99th percentile.
        busiest: load of the machine with the most work, relative to the mean.
    """

    hit_rate: float
    median: float
    late: float
    busiest: float


class Ring:
    """Consistent hashing: a picture's machines, the first and those behind it."""

    def __init__(self, machines: int):
        points = [(_hash(f"{machine}:{at}"), machine) for machine in range(machines) for at in range(VIRTUAL)]
        points.sort()
        self._points, self._owners = [point for point, _ in points], [owner for _, owner in points]
        self._known: dict[int, list[int]] = {}
        self._most = min(1 + FALLBACKS, machines)

    def machines(self, picture: int) -> list[int]:
        """In the order in which they are tried."""
        if picture not in self._known:
            at, found = bisect.bisect_right(self._points, _hash(f"picture {picture}")), []
            while len(found) < self._most:
                owner = self._owners[at % len(self._owners)]
                if owner not in found:
                    found.append(owner)
                at += 1
            self._known[picture] = found
        return self._known[picture]


class Front:
    """What a front knows of the machines: what it sent them itself, and what they told it then, which it forgets.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self.homes = PictureHomes[int](BATCH, clock)
        self._clock, self._sent, self._told = clock, Counter[int](), dict[int, tuple[float, int]]()

    def machine(self, picture: int, ring: Ring, machines: int) -> int:
        """The machine for a request about a picture."""
        chosen = self.homes.ranked(str(picture), ring.machines(picture), range(machines), self._under_way)[0]
        self.homes.took(str(picture), chosen)
        return chosen

    def sent(self, machine: int, under_way: int) -> None:
        """A machine took a request, and told how many it has under way."""
        self._sent[machine] += 1
        self._told[machine] = self._clock(), under_way

    def ended(self, machine: int) -> None:
        """A machine answered a request of this front."""
        self._sent[machine] -= 1
        self._told[machine] = self._clock(), max(0, self._told[machine][1] - 1)

    def _under_way(self, machine: int) -> int:
        at, told = self._told.get(machine, (-math.inf, 0))
        return max(self._sent[machine], told if self._clock() - at < TOLD else 0)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def simulate(
    service: Service,
    machines: int,
    routing: str,
    load: float,
    requests: int,
    pictures: int,
    held: int,
    seed: int = 0,
    fronts: int = 1,
) -> Found:
    """Send requests to machines and see how they wait.

    Args:
        service: what a request takes.
        machines: how many there are.
        routing: "random"; "hash", by consistent hashing, to one of the two next machines where the first has as much work
            waiting as a full batch makes; "homes", by the server's own `PictureHomes`.
        load: share of all processors that the requests would take with every picture's features there.
        requests: how many.
        pictures: different ones for each machine; the n-th most asked comes as often as 1/n says.
        held: pictures whose features a machine holds.
        seed: of what is drawn.
        fronts: which find homes for themselves; a request comes to any of them.
    """
    draw, ring = random.Random(seed), Ring(machines)
    count = pictures * machines
    shares = np.cumsum(1 / np.arange(1, count + 1))
    ranks = np.searchsorted(shares / shares[-1], np.random.default_rng(seed).random(requests))
    rate = load * machines / service.seconds(True)
    patience = BATCH * service.seconds(True)  # of work waiting, above which a machine counts as full
    under_way = Counter[int]()
    ends: list[tuple[float, int, Front]] = []  # of the requests under way, their machines and fronts
    all_machines = [Machine() for _ in range(machines)]
    work, waits, hits, now = np.zeros(machines), np.zeros(requests), 0, 0.0
    all_fronts = [Front(lambda: now) for _ in range(fronts)]
    for number, rank in enumerate(ranks.tolist()):
        now += draw.expovariate(rate)
        while ends and ends[0][0] <= now:
            _, ended, front = heapq.heappop(ends)
            under_way[ended] -= 1
            front.ended(ended)
        front = all_fronts[draw.randrange(fronts) if fronts > 1 else 0]
        if routing == "random":
            chosen = draw.randrange(machines)
        elif routing == "homes":
            chosen = front.machine(rank, ring, machines)
        else:
            candidates = ring.machines(rank)
            room = [each for each in candidates if all_machines[each].free - now <= patience]
            chosen = room[0] if room else min(candidates, key=lambda each: all_machines[each].free)
        machine = all_machines[chosen]
        hit = machine.holds(rank, held)
        taken = service.seconds(hit)
        begins = max(now, machine.free)
        machine.free = begins + taken
        under_way[chosen] += 1
        front.sent(chosen, under_way[chosen])
        heapq.heappush(ends, (machine.free, chosen, front))
        work[chosen] += taken
        waits[number], hits = begins - now, hits + hit
    settled = waits[requests // 4 :]  # the caches are filled first
    return Found(
        hits / requests, float(np.median(settled)), float(np.percentile(settled, 99)), work.max() / work.mean()
    )


def table(service: Service, counts: Sequence[int], load: float, per_machine: int) -> str:
    """A Markdown table by number of machines and routing; of 11 to 100 also with a front for each ten, which takes longer."""
    lines = [
        "| machines | routing | hit rate | waits, median | waits, p99 | busiest / mean |",
        "|---|---|---|---|---|---|",
    ]
    for machines in counts:
        ways = {"–": ("random", 1)}
        if machines > 1:
            ways = {"random": ("random", 1), "hash": ("hash", 1), "homes": ("homes", 1)}
        if 10 < machines <= 100:
            ways[f"homes, {machines // 10:,} fronts"] = "homes", machines // 10
        for name, (routing, fronts) in ways.items():
            asked = per_machine * machines
            found = simulate(service, machines, routing, load, asked, pictures=40, held=400, fronts=fronts)
            lines.append(
                f"| {machines:,} | {name} | {found.hit_rate:.1%} | {found.median:.3f} s | "
                f"{found.late:.2f} s | {found.busiest:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", default="1,10,100,1000")
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--requests", type=int, default=300, help="for each machine")
    parser.add_argument("--service", help='JSON such as {"vision": 0.1, "rest": 0.1, "decode": 0.2}, in seconds')
    given = parser.parse_args()
    services = MEASURED if given.service is None else {"given": Service(**json.loads(given.service))}
    for name, service in services.items():
        print(f"### {name}, load {given.load:g}\n")
        print(table(service, [int(each) for each in given.machines.split(",")], given.load, given.requests) + "\n")


if __name__ == "__main__":
    main()
