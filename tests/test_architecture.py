"""The floor plan, held to: which way imports go, where torch may be, how large a file or a function may grow.

docs/architecture.md draws the picture. Imports inside functions count as much as those on top of a file.
"""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up: each imports itself and what stands before it.
PACKAGES = ("graphs", "runtime", "calibration", "export")

# The same within runtime, its other modules being steps of a request. Rooms of one floor do not know each other.
RUNTIME = (
    {"runtime.errors"},
    {
        *("runtime.memory", "runtime.machine", "runtime.timing", "runtime.chat_template"),
        *("runtime.generation_config", "runtime.generation_settings"),
    },
    {"runtime.bundle"},
    {"runtime.backends", "runtime.media"},
    {"runtime"},
    {"runtime.pipeline", "runtime.media.visualize"},  # which draws a pipeline's answer
    {"runtime.serving"},
    {"runtime.batch"},
    {"runtime.cli"},
    {"runtime.__main__"},
)
STEPS = 4
TORCH = {"runtime.backends.eager_torch"}

MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 80, 10


@dataclass(frozen=True)
class Import:
    """Of one module by another; `target` may be no module of this project."""

    module: str
    target: str
    line: int
    runs: bool  # not only for a type checker

    def __str__(self) -> str:
        return f"{files()[self.module]}:{self.line} imports {self.target}"


@cache
def files() -> dict[str, Path]:
    """Module → its file, of the four packages; modules are called as under `rediprune`."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.relative_to(ROOT)
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / files()[module]).read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[Import]:
    """Of a module, lazy ones too."""
    inside = module.split(".") if files()[module].name == "__init__.py" else module.split(".")[:-1]
    for_types = {
        id(node)
        for branch in ast.walk(tree(module))
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree(module)):
        runs = id(node) not in for_types
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name.removeprefix("rediprune."), node.lineno, runs)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])]).removeprefix("rediprune.")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(module, name if name in files() else base, node.lineno, runs)


def all_imports() -> list[Import]:
    return [found for module in files() for found in imports(module)]


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_packages_import_downwards_only() -> None:
    floors = {package: floor for floor, package in enumerate(PACKAGES)}
    ours = [found for found in all_imports() if package_of(found.target) in floors]
    assert len(ours) > 500  # else nothing was looked at
    back = [found for found in ours if floors[package_of(found.target)] > floors[package_of(found.module)]]
    assert back == [], "; ".join(map(str, back))


def test_what_is_imported_from_this_project_is_there() -> None:
    lost = [found for found in all_imports() if package_of(found.target) in PACKAGES and found.target not in files()]
    assert lost == [], "; ".join(map(str, lost))


def test_modules_import_in_no_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in files()}
    for found in all_imports():
        if found.runs and found.target in files() and found.target != found.module:
            graph[found.module].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " → ".join(error.args[1]))


def room(module: str) -> tuple[int, str]:
    """Floor and room of a module of runtime: of the longest name in `RUNTIME` that it is in."""
    named = [(len(name), floor, name) for floor, rooms in enumerate(RUNTIME) for name in rooms]
    _, floor, name = max(entry for entry in named if module == entry[2] or module.startswith(f"{entry[2]}."))
    return floor, name


def test_rooms_of_the_runtime_import_downwards_only() -> None:
    bad = []
    for found in all_imports():
        if package_of(found.module) == package_of(found.target) == "runtime" and found.module != "runtime":
            (here, mine), (there, its) = room(found.module), room(found.target)
            if there > here or (there == here != STEPS and mine != its):
                bad.append(f"{found}, from floor {here} to {there}")
    assert bad == [], "; ".join(bad)


def test_the_runtime_imports_no_torch() -> None:
    bad = [
        found
        for found in all_imports()
        if package_of(found.module) == "runtime"
        and found.module not in TORCH
        and package_of(found.target) in ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "accelerate")
    ]
    assert bad == [], "; ".join(map(str, bad))


def test_no_two_modules_have_one_name() -> None:
    names = Counter(file.stem for file in files().values() if file.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_and_functions_are_of_a_size_to_read() -> None:
    too_large = []
    for module, file in files().items():
        lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            too_large.append(f"{file}: {lines} lines")
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno
                taken = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                parameters = [argument for argument in taken if argument.arg not in ("self", "cls")]
                if length > MOST_FUNCTION_LINES:
                    too_large.append(f"{file}:{node.lineno} {node.name}: {length} lines")
                if len(parameters) > MOST_PARAMETERS and "cli" not in file.parts:  # typer makes options of parameters
                    too_large.append(f"{file}:{node.lineno} {node.name}: {len(parameters)} parameters")
    assert too_large == [], "; ".join(too_large)


# -- packaging ---------------------------------------------------------------------------------------------------------


def setuptools_settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_folder_is_installed() -> None:
    settings = setuptools_settings()
    folders = {file.parent for file in files().values()} | {Path("rediprune")}
    assert {Path(folder) for folder in settings["package-dir"].values()} == folders
    assert sorted(settings["package-dir"]) == sorted(settings["packages"])
    for package, folder in settings["package-dir"].items():
        if not package.startswith("optimum."):  # Optimum's own namespace
            assert package == ".".join(dict.fromkeys(("rediprune", *Path(folder).parts)))


def test_sources_that_are_no_python_are_installed() -> None:
    data = setuptools_settings()["package-data"]
    for package, folder in setuptools_settings()["package-dir"].items():
        there = {file for file in (ROOT / folder).iterdir() if file.is_file() and file.suffix != ".py"}
        installed = {file for pattern in data.get(package, []) for file in (ROOT / folder).glob(pattern)}
        assert there <= installed, f"{package} lacks {sorted(file.name for file in there - installed)}"
