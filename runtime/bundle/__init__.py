"""The contract on disk: manifest, hashes, locks. The bottom floor: it imports no other room of the runtime."""

from .auto_keep import SCOPES, AutoKeep
from .calibration_record import CalibrationSpec, Fidelity, Limit, Sensitivity, sensitivity_rows
from .integrity import Bundle, file_sha256
from .manifest import (
    MANIFEST,
    PRECISIONS,
    SCHEMA_VERSION,
    WEIGHTS,
    DecoderSpec,
    EngineSpec,
    KeepDefaults,
    Manifest,
    ModalitySpec,
    Source,
    StageSpec,
    TensorSpec,
)
from .plan_record import PlanRecord, TriedForm

__all__ = [
    "MANIFEST",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "SCOPES",
    "WEIGHTS",
    "AutoKeep",
    "Bundle",
    "CalibrationSpec",
    "DecoderSpec",
    "EngineSpec",
    "Fidelity",
    "KeepDefaults",
    "Limit",
    "Manifest",
    "ModalitySpec",
    "PlanRecord",
    "Sensitivity",
    "Source",
    "StageSpec",
    "TensorSpec",
    "TriedForm",
    "file_sha256",
    "sensitivity_rows",
]
