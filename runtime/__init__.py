"""Bundle in, answers out. Needs no torch.

>>> from rediprune.runtime import Pipeline
>>> pipe = Pipeline.load("engines/demo")
>>> pipe.generate("What is left of the red ball?", images=["a.png"], keep=0.15).text
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import RedipruneError
    from .media.limits import MediaLimits
    from .options import GenerateOptions, SelectOptions
    from .pipeline import Answer, Pipeline, Stream

_MODULES = {
    "Answer": ".answer",
    "GenerateOptions": ".options",
    "MediaLimits": ".media.limits",
    "Pipeline": ".pipeline",
    "RedipruneError": ".errors",
    "SelectOptions": ".options",
    "Stream": ".answer",
}
__all__ = ["Answer", "GenerateOptions", "MediaLimits", "Pipeline", "RedipruneError", "SelectOptions", "Stream"]


def __getattr__(name: str) -> object:
    """Import on first use, so that the command line can start, and be interrupted, before anything heavy loads."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
