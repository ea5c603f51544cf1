"""Models as /v1/models lists them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import Manifest

LISTED_KEEPS = ("1", "0.5", "0.25", "0.15")  # aliases in /v1/models; any other ratio works too


@dataclass(frozen=True)
class Card:
    """A model.

    Attributes:
        name: what clients call it.
        created: when its bundle was written, in seconds since 1970.
        max_positions: that prompt and answer may take together.
    """

    name: str
    created: int
    max_positions: int

    @property
    def names(self) -> list[str]:
        """The name, and the aliases that are listed."""
        return [self.name, *(f"{self.name}@{keep}" for keep in LISTED_KEEPS)]

    def document(self, name: str) -> dict[str, Any]:
        """As OpenAI's clients read it, under its name or an alias."""
        told = {"id": name, "object": "model", "created": self.created, "owned_by": "rediprune"}
        return told | {"max_model_len": self.max_positions}


def card_of(name: str, folder: Path, manifest: Manifest) -> Card:
    """The card of a bundle."""
    return Card(name, int((folder / "manifest.json").stat().st_mtime), manifest.decoder.max_positions)


def cards_of(cards: Iterable[Card]) -> list[dict[str, Any]]:
    """All models and their aliases."""
    return [card.document(name) for card in cards for name in card.names]
