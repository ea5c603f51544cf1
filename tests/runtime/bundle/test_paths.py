"""A path is refused on every system where it leads outside on one of them."""

import ntpath
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.bundle.paths import inside


@pytest.mark.parametrize(
    "path", ["manifest.json", "onnx/vision.onnx.data", "processor/a b.json", "onnx/weights/.x-1_2"]
)
def test_names_of_files_in_the_bundle_are_taken(path: str) -> None:
    assert inside(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "../x", "a/../../x", "a/..", "a/./b", "a//b", "a/", "/x", "//server/share/x"),
        *("..\\x", "..\\..\\x", "a\\..\\..\\x", "\\x", "\\\\server\\share\\x", "\\\\?\\C:\\x", "\\\\.\\pipe\\x"),
        *("C:/x", "C:\\x", "C:x", "c:", "file:///x", "a:stream", "*/_ORT_MEM_ADDR_/*"),
        *("a\0b", "a\nb", "nul", "NUL.onnx", "a/con", "com1.data", "LPT9", "COM¹", "conin$", "aux .txt", "a.", "a "),
    ],
)
def test_what_leads_outside_or_to_a_device_on_one_system_is_refused_on_all(path: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        inside(path)


@given(st.text(st.sampled_from("a.:/\\ \0C"), max_size=12))
def test_what_is_taken_stays_inside_by_the_rules_of_either_system(path: str) -> None:
    try:
        inside(path)
    except ValueError:
        return
    assert posixpath.normpath(posixpath.join("/bundle", path)).startswith("/bundle/")
    assert ntpath.normpath(ntpath.join("D:\\bundle", path)).startswith("D:\\bundle\\")
    assert posixpath.normpath(path) == path == ntpath.normpath(path).replace("\\", "/")
