"""The documents say what is so: messages, fields, extras, files, commands and links are held against the code."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel
from rediprune.runtime.bundle import Manifest

from rediprune.renamed import MOVED

from .conftest import ROOT

PACKAGES = ("graphs", "runtime", "calibration", "export", "rediprune")
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
    if path.is_file()
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.S)


# -- links -------------------------------------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures."""
    targets = []
    for block in MarkdownIt().enable("table").parse(text):
        for token in block.children or ():
            targets += [str(token.attrs[key]) for key in ("href", "src") if key in token.attrs]
    return targets + re.findall(r'<img src="([^"]+)"', text)


def anchors(text: str) -> set[str]:
    """The headings of a page as anchors, as GitHub and the site make them."""
    found = re.findall(r"^#+ (.+)$", without_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    for link in links(read(name)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / name if not path else (ROOT / name).parent / path
        assert target.exists(), f"{name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name} links to {link}"


# -- names of files and modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_files_of_the_repository_that_a_page_names_exist(name: str) -> None:
    """`graphs/selection/counts.py` in backticks is a promise; a page that a walk-through writes is not."""
    written = set(re.findall(r'title="([^"]+)"', read(name)))
    named = set(
        re.findall(r"`((?:graphs|runtime|calibration|export|rediprune|tests|docs|examples)/[\w./-]*)`", read(name))
    )
    missing = [path for path in sorted(named - written) if not (ROOT / path).exists()]
    assert missing == [], f"{name} names {missing}"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_modules_that_a_page_names_exist(name: str) -> None:
    for module in re.findall(r"rediprune(?:\.[a-z_0-9]+)+", read(name)):
        if module == "rediprune.commands":  # the group of entry points
            continue
        assert module not in MOVED, f"{name} names {module}, which moved"
        assert resolves(module), f"{name} names {module}"


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute, None)
        return found is not None
    return False


# -- what pages repeat of the code -------------------------------------------------------------------------------------


def messages_in_the_code() -> str:
    """Every string of the packages, what is formatted into one as …, one a line."""
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    code = messages_in_the_code()
    quoted = re.findall(r"^- `(.+)`$", read("docs/troubleshooting.md"), flags=re.M)
    assert len(quoted) > 30
    assert [message for message in quoted if message not in code] == []


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A pydantic model and those that its fields hold."""
    found = {model}
    for field in model.model_fields.values():
        for kind in re.findall(r"\w+", str(field.annotation)):
            inner = getattr(sys.modules["rediprune.runtime.bundle"], kind, None)
            inner = inner or getattr(sys.modules["rediprune.runtime.bundle.calibration_record"], kind, None)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= models(inner)
    return found


def test_the_bundle_format_names_every_field_of_the_manifest() -> None:
    named = set(re.findall(r"`(\w+)`", read("docs/bundle-format.md")))
    fields = {field for model in models(Manifest) for field in model.model_fields}
    assert fields - named == set()


def test_the_readme_names_every_extra() -> None:
    extras = set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]) - {"dev"}
    named = {extra for group in re.findall(r"'\.\[([\w,-]+)\]'", read("README.md")) for extra in group.split(",")}
    assert named - {"EXTRA"} == extras


def test_the_changelog_lists_the_names_that_moved() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", read("CHANGELOG.md"), flags=re.M)
    assert {f"rediprune.{old}": f"rediprune.{new}" for old, new in rows} == MOVED


def test_the_command_line_page_is_what_the_commands_say() -> None:
    """On a difference run: python docs/tools/write_command_line.py"""
    script = "import sys; sys.path.insert(0, 'docs/tools'); import write_command_line; print(write_command_line.page())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == read("docs/command-line.md").rstrip("\n")


# -- layout ------------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_narrow() -> None:
    lines = read("README.md").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100 and "](" not in line] == []


# -- the site ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:link[^>]+href|script[^>]+src|img[^>]+src)=\"?(https?://[^\"> ]+)", page.read_text())
        assert loaded == [], f"{page.name} loads {loaded}"
