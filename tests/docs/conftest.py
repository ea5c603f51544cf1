"""What the tests of the documents share: the pages' code blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its language, the file that its title names ("" without a title), its text."""

    language: str
    title: str
    text: str


def code_blocks(path: Path) -> list[CodeBlock]:
    """The fenced blocks of a page, in order."""
    blocks = []
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            blocks.append(CodeBlock(language, rest.removeprefix('title="').removesuffix('"'), token.content))
    return blocks


@pytest.fixture
def page_blocks() -> Callable[[str], list[CodeBlock]]:
    """The blocks of a page, by its path in the repository."""
    return lambda name: code_blocks(ROOT / name)
