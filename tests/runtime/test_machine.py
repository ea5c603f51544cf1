"""What the processor says of itself, on machines of several kinds."""

from pathlib import Path

import pytest
from rediprune.runtime import machine

AVX2_ONLY = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 fma\n\nprocessor\t: 1\nflags\t\t: x\n"
SERVER = "model name\t: Xeon\nflags\t\t: avx2 avx512f avx512_vnni avx512_bf16\n"
CLIENT = "model name\t: Core\nflags\t\t: avx2 avx_vnni\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "vnni", "bf16"),
    [(AVX2_ONLY, False, False), (SERVER, True, True), (CLIENT, True, False), (ARM, False, False), ("", False, False)],
)
def test_instructions(text: str, vnni: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert (machine.has_vnni.__wrapped__(), machine.has_bf16.__wrapped__()) == (vnni, bf16)


def test_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: SERVER)
    assert machine.processor_name() == "Xeon"
