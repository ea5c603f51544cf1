"""Inputs made bad: bytes of files and values of JSON, by a generator of random numbers alone."""

import json
import random
from collections.abc import Callable
from typing import Any

# What a value of a document becomes. Sizes and counts so large that taking them at their word ends the machine.
_VALUES: list[Callable[[random.Random], Any]] = [
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 1, 2, 3, 255, 65536, 2**31, 2**63, -(2**63), 10**30]),
    lambda rng: rng.choice([0.0, -0.5, 0.1, 1e308, -1e308, float("nan"), float("inf")]),
    lambda rng: rng.choice(
        ["", "x", "0", "<image>", "../x", "/dev/zero", "C:/x", "\ud800", "a\u0000b", "x" * 10_000, "{%"]
    ),
    lambda rng: [],
    lambda rng: {},
    lambda rng: [[]],
    lambda rng: [rng.randint(-5, 5)] * rng.choice([1, 2, 1000]),
    lambda rng: {"": None, "x": {"y": []}},
]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, overwritten, taken away, doubled or moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not out:
            break
        most = len(out) if rng.random() < 0.7 else min(len(out), 64)  # headers more than the rest
        at = rng.randrange(most)
        size = rng.choice([1, 2, 4, 8, rng.randint(1, 200)])
        match rng.choice([0, 0, 1, 1, 2, 3, 4, 5, 6]):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + size] = rng.randbytes(len(out[at : at + size]))
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = rng.randbytes(size)
            case 4:
                out[at : at + size] = bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * len(out[at : at + size])
            case 5:
                other = rng.randrange(len(out))
                out[at:at] = out[other : other + size]
            case 6:
                del out[rng.randrange(len(out)) :]
    return bytes(out)


def mutate_json(rng: random.Random, document: Any) -> Any:
    """A document with some values replaced, taken out, doubled or put deeper."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = list(_places(document))
        if not places:
            return rng.choice(_VALUES)(rng)
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2:
                nested: Any = holder[key]
                for _ in range(rng.choice([3, 150])):  # json writes up to 1,000
                    nested = {"x": nested} if rng.random() < 0.5 else [nested]
                holder[key] = nested
            case 3 if isinstance(holder, dict):
                holder[rng.choice(["", "x", "__class__", "auto_map", "quantization_config"])] = holder[key]
            case 4:
                holder[key] = json.loads(json.dumps(rng.choice(places)[0]))
            case 5:
                holder[key] = rng.choice(_VALUES)(rng)
            case _:
                holder[key] = _alike(rng, holder[key], places)
    return document


def _alike(rng: random.Random, value: Any, places: list[tuple[Any, Any]]) -> Any:
    """Another value of the same type, which passes where only types are looked at."""
    others = [holder[key] for holder, key in places if type(holder[key]) is type(value)]
    match value:
        case bool():
            return not value
        case int():
            return rng.choice([value + 1, value - 1, value * 2, value // 2, -value, value * 1000, rng.choice(others)])
        case float():
            return rng.choice([value * 2, -value, value * 1e9, value / 1e9, rng.choice(others)])
        case str():
            return rng.choice([value[:-1], value + "x", value.upper(), rng.choice(others)])
    return json.loads(json.dumps(rng.choice(others)))


def mutate_text(rng: random.Random, document: Any) -> bytes:
    """A JSON file with bad values, or with bad bytes."""
    if rng.random() < 0.25:
        text = json.dumps(document).encode()
        return mutate_bytes(rng, text) if rng.random() < 0.9 else text.replace(b": ", b": " + b"[" * 100_000, 1)
    return json.dumps(mutate_json(rng, document)).encode(errors="replace")


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Where a value of a document stands: its holder, and its key or number there."""
    found: list[tuple[Any, Any]] = []
    open_ = [document]
    while open_:
        holder = open_.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else []
        found += [(holder, key) for key in keys]
        open_ += [holder[key] for key in keys]
    return found
