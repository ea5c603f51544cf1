"""The seal of a manifest: a digest over the document as it was written, so that a change made by hand is noticed.

What is sealed is the text's own content, not what today's models make of it: a default may change, and a field may be
added, without touching bundles that were made before. It is no signature: whoever can write the folder can seal it.
"""

import hashlib
import json
from typing import Any

_DOCUMENT = "document-sha256:"  # says what the digest is over; without it, it is that of earlier versions

Document = dict[str, Any]


def seal(document: Document) -> str:
    """The digest of a manifest, over everything in it but the digest."""
    body = {name: value for name, value in document.items() if name != "digest"}
    return _DOCUMENT + _sha256(body)


def is_sealed(document: Document) -> bool:
    """Whether a manifest that `Manifest` takes is as it was written, by this version or an earlier one."""
    digest = str(document.get("digest", ""))
    return digest == (seal(document) if digest.startswith(_DOCUMENT) else _earlier_digest(document))


def _sha256(body: Document) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _earlier_digest(document: Document) -> str:
    """As versions up to 0.1.0 sealed: without values that were the defaults of that time, which stand here for good."""
    keep = {"keep": 0.15, "alpha": 0.5, "tau": 0.0}
    body = _without(
        {name: value for name, value in document.items() if name != "digest"},
        schema_version=1,
        pinpoints=[],
        newline=None,
        defaults=keep,
        engines={},
        calibration=None,
        files={},
    )
    body["source"] = _without(body["source"], revision=None)
    body["modalities"] = {name: _without(part, leading=0, tiled=False) for name, part in body["modalities"].items()}
    body["stages"] = {name: _without(part, weight_bytes=0, compared=False) for name, part in body["stages"].items()}
    if "defaults" in body:
        body["defaults"] = _without(body["defaults"], **keep)
    if "engines" in body:
        body["engines"] = {
            name: _without(part, precision={}, compute_capability=[], profile={}, source_sha256={}, files={})
            for name, part in body["engines"].items()
        }
    if "calibration" in body:
        body["calibration"] = _earlier_calibration(body["calibration"])
    return _sha256(body)


def _earlier_calibration(document: Document) -> Document:
    body = _without(
        document,
        data={},
        ranges="",
        skipped={},
        fidelity={},
        limits=[],
        tools={},
        budget="",
        measured={},
        sensitivity=[],
        floors=None,
    )
    if "limits" in body:
        body["limits"] = [_without(limit, below=None) for limit in body["limits"]]
    if "sensitivity" in body:
        body["sensitivity"] = [_without(one, kept=None, quantised=True) for one in body["sensitivity"]]
    return body


def _without(document: Document, **defaults: Any) -> Document:
    return {name: value for name, value in document.items() if name not in defaults or value != defaults[name]}
