"""The package that runs a backend, and its version."""

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = {"openvino": ("openvino",), "tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt-rtx",)}
_ONNX_RUNTIME = ("onnxruntime", "onnxruntime-gpu")  # one module, of either


def library_of(backend: str) -> tuple[str, str]:
    """Name and version of the installed package that runs a backend.

    Raises:
        PackageNotFoundError: there is none.
    """
    names = _PACKAGES.get(backend.removesuffix("-bf16"), _ONNX_RUNTIME)
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(names[0])
