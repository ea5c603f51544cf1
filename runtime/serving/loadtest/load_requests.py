"""What a load test asks for: the same seeded requests at every keep ratio and number of clients."""

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ...errors import RedipruneError

_QUESTIONS = (
    "What is in this picture?",
    "How many objects are there, and which colours do they have?",
    "What is in the upper left corner?",
    "Describe the largest object.",
    "Is anything partly hidden?",
)
_COLOURS = ("red", "green", "blue", "orange", "purple", "yellow", "brown", "black")
SIZE = 336  # pixels to a side of the drawn pictures


@dataclass(frozen=True)
class LoadTest:
    """What is asked, how often and by how many.

    Attributes:
        model: its name at the server.
        keeps: ratios to compare.
        clients: numbers of clients to compare; each sends its next request when it has the answer to the last.
        requests: of every step, at least two for each client.
        text_share: share of them that have no picture, 0 to 1.
        pictures: how many different pictures are asked about; their features are cached after the first time.
        fresh: every request has a picture of its own instead.
        max_tokens: tokens of an answer.
        whole: answers go on to `max_tokens`, so that all steps generate alike (the field ignore_eos).
        seed: of everything that is drawn.

    Raises:
        RedipruneError: a setting is out of its range.
    """

    model: str
    keeps: Sequence[float] = (1.0, 0.15)
    clients: Sequence[int] = (1, 2, 4, 8, 16, 32)
    requests: int = 64
    text_share: float = 0.25
    pictures: int = 4
    fresh: bool = False
    max_tokens: int = 32
    whole: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.clients or any(count < 1 for count in self.clients):
            raise RedipruneError("--clients takes numbers from 1 on")
        if not 0 <= self.text_share <= 1:
            raise RedipruneError(f"--text-share must be from 0 to 1, not {self.text_share}")
        if min(self.requests, self.pictures, self.max_tokens) < 1:
            raise RedipruneError("--requests, --pictures and --max-tokens must be at least 1")

    def count(self, clients: int) -> int:
        """Requests of a step."""
        return max(self.requests, 2 * clients)

    def bodies(self, keep: float, count: int, step: int) -> list[dict[str, Any]]:
        """The requests of a step. Steps differ in the numbers that end their questions, so that no answer is known."""
        draw = random.Random(f"{self.seed} {count}")
        shared = [] if self.fresh else [picture_uri(f"{self.seed} {at}") for at in range(self.pictures)]
        bodies = []
        for number in range(count):
            question = f"{draw.choice(_QUESTIONS)} ({step}.{number})"
            content: list[dict[str, Any]] = [{"type": "text", "text": question}]
            if draw.random() >= self.text_share:
                uri = picture_uri(f"{self.seed} {step} {number}") if self.fresh else draw.choice(shared)
                content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
            bodies.append(self._body(keep, content))
        return bodies

    def warming(self, keep: float) -> list[dict[str, Any]]:
        """Requests that bring the features of the shared pictures into the cache."""
        uris = [] if self.fresh else [picture_uri(f"{self.seed} {at}") for at in range(self.pictures)]
        pictures = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        return [self._body(keep, [picture, {"type": "text", "text": "Warm."}]) for picture in pictures]

    def _body(self, keep: float, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": self.whole,
            "keep": keep,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def picture_uri(seed: str) -> str:
    """A drawn picture as a data: URI; equal for equal seeds."""
    return "data:image/png;base64," + base64.b64encode(picture_png(seed)).decode("ascii")


def picture_png(seed: str) -> bytes:
    """A drawn picture as a PNG file."""
    draw = random.Random(seed)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        left, top, size = draw.randrange(SIZE), draw.randrange(SIZE), draw.randrange(20, SIZE // 3)
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape((left, top, left + size, top + size), fill=draw.choice(_COLOURS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
