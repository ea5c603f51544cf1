"""The seal is over what was written: defaults change and fields are added without touching older bundles."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rediprune.runtime.bundle import KeepDefaults, Manifest
from rediprune.runtime.bundle.seal import is_sealed, seal

EARLIER = sorted((Path(__file__).parent / "data").glob("schema1_*.json"))  # sealed by version 0.1.0's first digest


def changes(document: Any) -> Iterator[Any]:
    """The document with one value changed, for every value in it but the digest."""
    places = [(document, name) for name in document if name != "digest"]
    while places:
        holder, name = places.pop()
        value = holder[name]
        if isinstance(value, dict) and value:
            places += [(value, inner) for inner in value]
        elif isinstance(value, list) and value:
            places += [(value, at) for at in range(len(value))]
        else:
            holder[name] = "changed" if value != "changed" else 1
            yield document
            holder[name] = value


def is_refused(document: Any) -> bool:
    try:
        Manifest.model_validate(document)
    except ValueError:
        return True
    return not is_sealed(document)


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_manifests_of_earlier_versions_stay_sealed(path: Path) -> None:
    document = json.loads(path.read_text())
    Manifest.model_validate(document)
    assert is_sealed(document)
    changed = [is_refused(other) for other in changes(document)]
    assert len(changed) > 200 and all(changed)


def test_every_value_of_a_manifest_is_under_its_seal() -> None:
    document = json.loads(EARLIER[0].read_text())
    document["digest"] = seal(document)
    assert is_sealed(document)
    assert is_sealed(json.loads(json.dumps(document, indent=2, sort_keys=True)))  # the layout of the text is not
    assert all(not is_sealed(other) for other in changes(document))
    added = copy.deepcopy(document) | {"more": None}
    assert not is_sealed(added)


@pytest.mark.parametrize("again", [False, True], ids=["sealed before", "sealed now"])
def test_a_default_that_changes_leaves_older_bundles_sealed(again: bool) -> None:
    document = json.loads((EARLIER[0].parent / "schema1_calibrated.json").read_text())
    assert document["defaults"]["keep"] == 0.15  # the default of its time
    if again:
        document["digest"] = seal(document)
    field = KeepDefaults.model_fields["keep"]
    field.default = 0.25
    KeepDefaults.model_rebuild(force=True)
    Manifest.model_rebuild(force=True)
    try:
        assert KeepDefaults().keep == 0.25
        assert is_sealed(document) and Manifest.model_validate(document).defaults.keep == 0.15
    finally:
        field.default = 0.15
        KeepDefaults.model_rebuild(force=True)
        Manifest.model_rebuild(force=True)
