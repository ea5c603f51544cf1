"""Names of a bundle's files: one rule, the same on every system, so that a bundle means the same wherever it is opened."""

import re

# What Windows keeps for devices, whatever the extension and the case
# (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


def inside(path: str) -> str:
    """A path within a bundle, as the manifest and its graphs write it: relative, with `/`, in its normal form.

    Refused on every system is what leads outside on one of them, or names something else than a file there: `../x`,
    `/x`, `..\\x`, `C:/x`, `\\\\server\\x`, `C:x`, a NUL, `a/./b`, `nul.onnx`, a name that ends in a dot or a space.

    Args:
        path: as it is written.

    Returns:
        The path, unchanged.

    Raises:
        ValueError: it leads outside, or not to the same file on every system.
    """
    for part in path.split("/"):
        if part in ("", ".", "..") or _FORBIDDEN.search(part) or part[-1] in ". " or _DEVICE.fullmatch(part):
            raise ValueError(f"path {path!r} leads outside the bundle, or is not a file name on every system")
    return path
