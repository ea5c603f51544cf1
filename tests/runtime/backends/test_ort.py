"""How ONNX Runtime is set up for the processor at hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rediprune.runtime.backends import ort
from rediprune.runtime.backends.ort import session_options
from rediprune.runtime.backends.session import open_stage
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import RedipruneError

UNSIGNED_PRODUCTS = "session.x64quantprecision"


@pytest.mark.parametrize(("vnni", "int8_blocks"), [(True, False), (False, False), (False, True)])
def test_weights_are_made_unsigned_only_where_signed_ones_saturate(
    vnni: bool, int8_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "has_vnni", lambda: vnni)
    options = session_options(0, int8_blocks)
    if vnni or int8_blocks:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            options.get_session_config_entry(UNSIGNED_PRODUCTS)
    else:
        assert options.get_session_config_entry(UNSIGNED_PRODUCTS) == "1"


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_manifest_that_names_other_ports_than_the_graph_has_is_refused(
    kind: str, bundle_of: Callable[[str], Path]
) -> None:
    bundle = Bundle.open(bundle_of("llava"))
    port = getattr(bundle.manifest.stages["embed"], kind)[0]
    port.name = port.name[:-1]
    with pytest.raises(RedipruneError, match=rf"have not the same {kind} of 'embed' \({port.name}, "):
        open_stage("ort", bundle, "embed", 1)
