"""Bundle in, answers out. Needs no torch.

>>> from rediprune.runtime import Pipeline
>>> pipe = Pipeline.load("engines/demo")
>>> pipe.generate("What is left of the red ball?", images=["a.png"], keep=0.15).text
"""

from .errors import RedipruneError
from .pipeline import Answer, Pipeline, Stream

__all__ = ["Answer", "Pipeline", "RedipruneError", "Stream"]
