"""Who wins is said at equal bits of weights, by our best bundle of them."""

from typing import Any

from rediprune.export.bench.verdicts import bits_of, verdicts


def row(contender: str, ours: bool, keep: float, first: float, token: float, language: str = "") -> dict[str, Any]:
    return {
        "contender": contender,
        "ours": ours,
        "keep": keep,
        "time_to_first_token": first,
        "decode_token": token,
        "precision": {"language": language} if ours else {},
    }


def test_each_peer_is_held_against_bundles_of_its_bits() -> None:
    rows = [
        row("fast on auto", True, 1.0, 0.8, 0.02, "int8-dynamic"),
        row("fast on auto", True, 0.15, 0.4, 0.01, "int8-dynamic"),
        row("slow on ort", True, 1.0, 1.0, 0.03, "int8"),
        row("exact on ort", True, 1.0, 3.0, 0.06, "fp32"),
        row("genai-int8", False, 1.0, 0.9, 0.015),
        row("eager fp32", False, 1.0, 6.0, 0.0),
        row("genai-int4", False, 1.0, 0.9, 0.01),
    ]
    assert verdicts(rows) == [
        "genai-int8, 8 bits: unpruned we win, 1.12 × to the first token (fast on auto); pruned we win, 2.25 × to the first "
        "token (fast on auto, keep 0.15); we win, 1.50 × a token",
        "eager fp32, 32 bits: unpruned we win, 2.00 × to the first token (exact on ort)",
    ]


def test_a_defeat_is_said() -> None:
    rows = [row("ours on ort", True, 1.0, 1.5, 0.02, "int4"), row("llama.cpp-q4_0", False, 1.0, 0.9, 0.01)]
    assert verdicts(rows) == [
        "llama.cpp-q4_0, 4 bits: unpruned we lose, 0.60 × to the first token (ours on ort); we lose, 0.50 × a token"
    ]


def test_bits_of_weights() -> None:
    assert [bits_of(row(name, False, 1.0, 1.0, 1.0)) for name in ("eager bf16", "exported", "llama.cpp-q8_0")] == [
        16,
        32,
        8,
    ]
    assert bits_of(row("ours", True, 1.0, 1.0, 1.0, "int8-weights")) == 8
