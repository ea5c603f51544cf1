"""What is installed with what, as pyproject.toml says."""

import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from rediprune.runtime import Pipeline
from rediprune.runtime.errors import RedipruneError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def installed_by(extra: str) -> set[str]:
    """Names of the packages that an extra needs, those of the extras it names included."""
    found = set()
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == "rediprune":
            found |= set().union(*(installed_by(each) for each in requirement.extras))
        else:
            found.add(requirement.name)
    return found


def test_the_two_onnx_runtimes_are_extras_that_do_not_fight() -> None:
    core = {Requirement(each).name for each in PROJECT["dependencies"]}
    assert not {"onnxruntime", "onnxruntime-gpu", "torch", "matplotlib"} & core
    extras = {name: installed_by(name) for name in PROJECT["optional-dependencies"]}
    assert "onnxruntime" in extras["cpu"] and "onnxruntime-gpu" in extras["cuda"]
    assert not any({"onnxruntime", "onnxruntime-gpu"} <= packages for packages in extras.values())
    beside_cuda = ("export", "serve", "plot", "gpu", "tensorrt", "tensorrt-rtx", "optimum")
    assert not any("onnxruntime" in extras[name] for name in beside_cuda)
    assert extras["evaluate"] == extras["plot"] == {"matplotlib"}


def test_every_release_of_transformers_5_that_has_the_classes() -> None:
    needed = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "transformers")
    assert all(needed.specifier.contains(version) for version in ("5.4.0", transformers.__version__, "5.24.0", "5.99"))
    assert not any(needed.specifier.contains(version) for version in ("5.3.0", "4.57.6", "6.0.0"))


@pytest.mark.parametrize(("backend", "extra"), [("ort", "cpu"), ("ort-cuda", "cuda")])
def test_a_missing_onnx_runtime_names_its_extra(
    backend: str, extra: str, bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ort", "ort_cuda"):
        monkeypatch.delitem(sys.modules, f"rediprune.runtime.backends.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    if backend == "ort-cuda" and find_spec("cuda") is None:
        pytest.skip("needs cuda-bindings")
    with pytest.raises(RedipruneError, match=rf"pip install 'rediprune\[{extra}\]'"):
        Pipeline.load(bundle_of("llava"), backend, lazy=True).generate("Why?", max_new_tokens=1)
