"""The outcome in a sentence for each peer: who wins, at equal bits of weights, unpruned and pruned."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# How quantization schemes and peers store a decoder's weights.
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int8-dynamic": 8, "int8-weights": 8, "int4": 4}
_ENDINGS = {"-int8": 8, "-q8_0": 8, "-int4": 4, "-q4_0": 4, " bf16": 16}


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence for each peer that there is a bundle of equal bits to; our best one speaks for us.

    Args:
        rows: of whole pipelines, as `contender_rows` makes them.
    """
    found = []
    for peer in (row for row in rows if not row["ours"]):
        equal = [row for row in rows if row["ours"] and bits_of(row) == bits_of(peer)]
        parts = []
        for name, ours in (
            ("unpruned", [r for r in equal if r["keep"] == 1]),
            ("pruned", [r for r in equal if r["keep"] < 1]),
        ):
            if ours:
                best = min(ours, key=lambda row: row["time_to_first_token"])
                ratio = peer["time_to_first_token"] / best["time_to_first_token"]
                keep = "" if best["keep"] == 1 else f", keep {best['keep']:g}"
                parts.append(f"{name} {_ratio(ratio)} to the first token ({best['contender']}{keep})")
        decoding = [row for row in equal if row["decode_token"]]
        if decoding and peer["decode_token"]:
            best = min(decoding, key=lambda row: row["decode_token"])
            parts.append(f"{_ratio(peer['decode_token'] / best['decode_token'])} a token")
        if parts:
            at = "" if peer["keep"] == 1 else f" at keep {peer['keep']:g}"
            found.append(f"{peer['contender']}{at}, {bits_of(peer)} bits: {'; '.join(parts)}")
    return found


def bits_of(row: Row) -> int:
    """Bits of a weight of the decoder."""
    if row["ours"]:
        return _BITS.get(row["precision"].get("language", "fp32"), 32)
    return next((bits for ending, bits in _ENDINGS.items() if row["contender"].endswith(ending)), 32)


def _ratio(ratio: float) -> str:
    return f"{'we win' if ratio >= 1 else 'we lose'}, {ratio:.2f} ×"
