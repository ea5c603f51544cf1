"""Bundle in, answers out. Needs no torch.

>>> from rediprune.runtime import Pipeline
>>> pipe = Pipeline.load("engines/demo")
>>> pipe.generate("What is left of the red ball?", images=["a.png"], keep=0.15).text
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import RedipruneError
    from .pipeline import Answer, Pipeline, Stream

__all__ = ["Answer", "Pipeline", "RedipruneError", "Stream"]


def __getattr__(name: str) -> object:
    """Import on first use, so that the command line can start, and be interrupted, before anything heavy loads."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".errors" if name == "RedipruneError" else ".pipeline", __name__), name)
