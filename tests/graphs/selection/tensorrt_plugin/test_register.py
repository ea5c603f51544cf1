"""Finding and registering the plugin library: what is looked at, and what the errors say."""

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from rediprune.graphs.selection.tensorrt_plugin import register
from rediprune.graphs.selection.tensorrt_plugin.register import (
    LIBRARY,
    VARIABLE,
    PluginMissing,
    find_plugin,
    load_plugin,
)


class Registry:
    """Stands in for TensorRT's plugin registry."""

    def __init__(self, accepts: bool = True) -> None:
        self.accepts = accepts
        self.loaded: list[str] = []

    def load_library(self, path: str) -> object:
        self.loaded.append(path)
        return object() if self.accepts else None


def tensorrt(registry: Registry) -> ModuleType:
    module = ModuleType("tensorrt")
    vars(module).update(__version__="11.1.0", get_plugin_registry=lambda: registry)
    return module


def build(path: Path, code: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to build a stand-in library")
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=code.encode(), check=True)
    return path


def test_missing_names_every_place_and_the_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(register, "__file__", str(tmp_path / "register.py"))
    with pytest.raises(PluginMissing) as error:
        find_plugin()
    message = str(error.value)
    assert str(tmp_path / LIBRARY) in message
    assert VARIABLE in message
    assert "make -C" in message and "TENSORRT_ROOT" in message


def test_a_named_place_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "elsewhere.so"))
    with pytest.raises(PluginMissing, match=r"elsewhere\.so"):
        find_plugin()
    assert find_plugin(tmp_path) == tmp_path / LIBRARY  # a given path wins over the variable
    with pytest.raises(PluginMissing, match=r"as given"):
        find_plugin(tmp_path / "nothing.so")


def test_the_variable_may_name_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert find_plugin() == tmp_path / LIBRARY


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"not a library")
    with pytest.raises(PluginMissing, match="cannot be loaded"):
        load_plugin(tmp_path, tensorrt(Registry()))


def test_a_foreign_library_is_refused(tmp_path: Path) -> None:
    library = build(tmp_path / LIBRARY, "int something_else(void) { return 0; }")
    with pytest.raises(PluginMissing, match="cannot be loaded"):
        load_plugin(library, tensorrt(Registry()))


def test_a_library_that_registered_itself_is_not_loaded_twice(tmp_path: Path) -> None:
    registry = Registry()
    library = build(tmp_path / LIBRARY, "int rediprune_is_registered(void) { return 1; }")
    assert load_plugin(library, tensorrt(registry)) == library
    assert registry.loaded == []


def test_else_the_registry_loads_it_once(tmp_path: Path) -> None:
    registry = Registry()
    module = tensorrt(registry)
    library = build(tmp_path / LIBRARY, "int rediprune_is_registered(void) { return 0; }")
    assert load_plugin(library, module) == load_plugin(library, module) == library
    assert registry.loaded == [str(library)]


def test_a_refusal_by_tensorrt_is_an_error(tmp_path: Path) -> None:
    library = build(tmp_path / LIBRARY, "int rediprune_is_registered(void) { return 0; }")
    with pytest.raises(PluginMissing, match=r"TensorRT 11\.1\.0 refused"):
        load_plugin(library, tensorrt(Registry(accepts=False)))


def test_names_agree_with_the_library(sources: Path) -> None:
    header = (sources / "plugin.h").read_text(encoding="utf-8")
    names = dict(re.findall(r'plugin_(name|version|namespace) = "(\w+)"', header))
    assert names == {"name": register.NAME, "version": register.VERSION, "namespace": register.NAMESPACE}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_without_headers_says_what_is_missing(sources: Path, tmp_path: Path) -> None:
    missing = f"{tmp_path}/include/NvInfer.h does not exist"
    for root, said in (("", "TENSORRT_ROOT is not set"), (str(tmp_path), missing)):
        command = ["make", "-C", str(sources), f"TENSORRT_ROOT={root}", f"BUILD={tmp_path}/build", "needs"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode != 0
        assert said in result.stderr
