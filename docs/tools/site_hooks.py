"""Hooks of the site: pages that lie outside docs/ join it, and the API's sources lie where mkdocstrings looks.

Every page keeps the links that work where its file lies, on GitHub as in an editor; here they are turned into those of
the site.
"""

import posixpath
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples")
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")  # the path of a Markdown link: no anchor, no URL


def on_startup(**_: Any) -> None:
    """Lay the packages out as they are imported: pyproject.toml maps each to a folder of another name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    sources = ROOT / "build" / "api"
    shutil.rmtree(sources, ignore_errors=True)
    for package, folder in project["tool"]["setuptools"]["package-dir"].items():
        target = sources.joinpath(*package.split("."))
        target.mkdir(parents=True, exist_ok=True)
        for file in (ROOT / folder).glob("*.py"):
            shutil.copyfile(file, target / file.name)


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ under their own paths."""
    for name in OUTSIDE:
        paths = [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).iterdir())
        for path in paths:
            if path.is_file():
                uri = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between docs/ and the files outside it into those of the site."""
    site = page.file.src_uri
    repository = posixpath.relpath(Path(page.file.abs_src_path).as_posix(), ROOT.as_posix())

    def on_the_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(repository), match[1])).removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(site) or ".")

    return _LINK.sub(on_the_site, markdown)
