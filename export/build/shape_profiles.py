"""Optimisation profiles: for every dynamic dimension the least, the usual and the greatest size an engine takes.

A profile is given by symbol (`kept=1:64:576`), the names that the manifest's dimensions have, so that a dimension that
several stages share is the same in all of them.
"""

from collections.abc import Iterable

from ...graphs.selection.counts import QUERY_TOKENS, num_kept
from ...runtime.bundle import Manifest, StageSpec
from ...runtime.errors import RedipruneError

Range = tuple[int, int, int]
Profile = dict[str, list[list[int]]]  # input → [min, opt, max], each the input's shape; for a shape input its value

LONGEST_CACHE = 4096  # positions; a longer cache is asked for with cache=…
_MEANING = {
    "frames": "frames of a call",
    "patches": "visual tokens of a frame",
    "question": "text tokens that steer the selection",
    "kept": "visual tokens kept of a frame",
    "groups": "tokens of a picture that has the size that fits it",
    "windows": "windows of a picture that layers attend within",
    "batch": "sequences",
    "tokens": "tokens of the prompt, text and visual",
    "cache": "positions of the KV cache, one number",
}


def ranges(manifest: Manifest, overrides: Iterable[str] = ()) -> dict[str, Range]:
    """The range of every symbol: what the model can take, with overrides.

    Args:
        manifest: of the bundle.
        overrides: `symbol=min:opt:max`, or `symbol=size` for a fixed one.

    Raises:
        RedipruneError: an override that cannot be read, or ranges that contradict each other or the model.
    """
    given = dict(_parse(text) for text in overrides)
    decoder = manifest.decoder
    patches = max(spec.patches for spec in manifest.modalities.values())
    length = min(decoder.max_positions, LONGEST_CACHE)
    cache = given.get("cache", (length, length, length))
    most = given.get("patches", (1, patches, patches))
    found: dict[str, Range] = {
        "frames": (1, 8, 32),
        "patches": most,
        "question": (1, 32, QUERY_TOKENS),
        "groups": most,
        "windows": (1, -(-most[1] // 16), most[2]),
        "kept": (1, num_kept(most[1], manifest.defaults.keep), most[2]),
        "batch": (1, 1, 1),
        "tokens": (1, min(512, cache[2]), cache[2]),
        "cache": cache,
    } | given
    if len(set(cache)) > 1:
        raise RedipruneError(
            f"profile cache={_text(cache)}: an engine's KV cache has one length, e.g. cache={cache[2]}"
        )
    if cache[2] > decoder.max_positions:
        raise RedipruneError(
            f"profile cache={cache[2]}: the language model has {decoder.max_positions} positions; give at most that"
        )
    for symbol, bound in (("kept", "patches"), ("tokens", "cache")):
        if found[symbol][2] > found[bound][2]:
            raise RedipruneError(
                f"profile {symbol}={_text(found[symbol])}: {symbol} cannot exceed {bound}, which is {found[bound][2]} at most"
            )
    return found


def profile_of(stage: str, spec: StageSpec, sizes: dict[str, Range]) -> Profile:
    """The profile of a stage's inputs.

    The language stage has one for prefill and decoding: with two, TensorRT-RTX 1.7 stores most weights twice (0.5 B in
    fp16: 1.71 GB in place of 0.99) and takes twice as long, and it compiles kernels for the shapes met anyway.
    """
    if stage == "embed":  # a lookup costs nothing more for being wide
        sizes = sizes | {"batch": (1, 1, max(4, sizes["batch"][2]))}
    profile = {}
    for port in spec.inputs:
        if port.name == "num_keep":  # a shape input: its value, not its shape
            profile[port.name] = [[size] for size in sizes["kept"]]
        elif port.shape:
            profile[port.name] = [[sizes[d][i] if isinstance(d, str) else d for d in port.shape] for i in range(3)]
    return profile


def _parse(text: str) -> tuple[str, Range]:
    symbol, _, sizes = text.partition("=")
    if symbol not in _MEANING:
        known = ", ".join(f"{name} ({meaning})" for name, meaning in _MEANING.items())
        raise RedipruneError(f"profile '{text}': there is no dimension '{symbol}'; the dimensions are {known}")
    try:
        numbers = [int(size) for size in sizes.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or numbers[0] < 1:
        raise RedipruneError(f"profile '{text}' is not {symbol}=MIN:OPT:MAX with numbers from 1 on")
    low, usual, high = numbers
    if not low <= usual <= high:
        raise RedipruneError(f"profile '{text}': the sizes must not fall from min over opt to max")
    return symbol, (low, usual, high)


def _text(sizes: Range) -> str:
    return ":".join(map(str, sizes))
