"""The metrics of all replicas in one place: each reports its own, and one that reports no more is left out."""

import re
import time

_STALE_SECONDS = 30.0
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(\{(.*)\})? (.+)$")


class Board:
    """Holds what replicas report."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, str]] = {}

    def put(self, replica: str, text: str, at: float) -> None:
        """Take a replica's metrics in Prometheus' text format, as they were at a time (`time.time`)."""
        self._texts[replica] = (at, text)

    def merged(self) -> str:
        """All metrics, each with the replica as a label."""
        now = time.time()
        self._texts = {name: told for name, told in self._texts.items() if now - told[0] < _STALE_SECONDS}
        return merge({name: text for name, (_, text) in self._texts.items()})


def merge(texts: dict[str, str]) -> str:
    """Metrics of several processes as one text: the lines of a metric together, each with the label `replica`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in sorted(texts.items()):
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                if line not in heads.setdefault(family, []):
                    heads[family].append(line)
            elif (found := _SAMPLE.match(line)) is not None:
                name, _, labels, value = found.groups()
                inside = f'{labels},replica="{replica}"' if labels else f'replica="{replica}"'
                samples.setdefault(family, []).append(f"{name}{{{inside}}} {value}")
    lines = [line for family in heads for line in (*heads[family], *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)
