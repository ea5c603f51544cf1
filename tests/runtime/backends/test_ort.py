"""How ONNX Runtime is set up for the processor at hand."""

import pytest
from rediprune.runtime.backends import ort
from rediprune.runtime.backends.ort import session_options

UNSIGNED_PRODUCTS = "session.x64quantprecision"


@pytest.mark.parametrize("vnni", [True, False])
def test_weights_are_made_unsigned_only_where_signed_ones_saturate(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "has_vnni", lambda: vnni)
    options = session_options(0)
    if vnni:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            options.get_session_config_entry(UNSIGNED_PRODUCTS)
    else:
        assert options.get_session_config_entry(UNSIGNED_PRODUCTS) == "1"
