"""ReDiPrune bundles as a model of lmms-eval: `lmms-eval --model rediprune --model_args bundle=…,keep=0.15 --tasks …`."""

from typing import Any


def manifest() -> Any:
    """The entry point: which class answers for the model "rediprune". lmms-eval calls it while it is being imported."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("rediprune", chat_class_path="rediprune_lmms_eval.model.Rediprune")
