"""What a language stage's input of positions is fed."""

import numpy as np
import pytest
from rediprune.runtime.backends.language_inputs import LanguageInputs
from rediprune.runtime.bundle import StageSpec, TensorSpec


@pytest.mark.parametrize("kind", [np.longlong, np.int32, np.int64])
def test_positions_are_int64_itself(kind: type) -> None:
    """C's long long is equal to int64 and another type, which OpenVINO does not take."""
    port = TensorSpec(name="position_ids", dtype="int64", shape=["batch", "tokens"])
    stage = StageSpec(file="a", files={"a": ""}, precision="fp32", inputs=[port], outputs=[])
    (found,) = LanguageInputs(stage).feed([0], 3, np.array([[4, 5, 9]], kind)).values()
    assert found is not None
    assert found.dtype.char == np.dtype(np.int64).char
    assert found.tolist() == [[4, 5, 9]]
