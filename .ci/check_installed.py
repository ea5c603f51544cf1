"""Hold what `pip install .` installed to the tree: every source of the packages, and nothing from outside of them.

Usage: check_installed.py ROOT, by the Python of the environment.
"""

import sys
import tomllib
from importlib.metadata import files
from pathlib import Path, PurePosixPath

DATA = (".cu", ".cuh", ".h", ".cpp", ".html")  # beside Python; a Makefile too


def expected(root: Path) -> set[str]:
    """Files of the packages as the wheel names them."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    return {
        str(PurePosixPath(*package.split("."), file.name))
        for package, folder in settings["package-dir"].items()
        for file in (root / folder).iterdir()
        if file.suffix in (".py", *DATA) or file.name == "Makefile"
    }


def main() -> int:
    """Returns 1, having said which, if files lack or are too many."""
    there = {str(file) for file in files("rediprune") or () if ".dist-info" not in str(file)}
    there = {name for name in there if not name.startswith("..") and "__pycache__" not in name}
    wanted = expected(Path(sys.argv[1]))
    for what, names in (("lacks", wanted - there), ("should not have", there - wanted)):
        if names:
            print(f"the installed package {what} {', '.join(sorted(names))}", file=sys.stderr)
    print(f"installed: {len(there)} files")
    return int(there != wanted)


if __name__ == "__main__":
    sys.exit(main())
