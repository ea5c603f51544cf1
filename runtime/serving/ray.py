"""`serve run rediprune.runtime.serving.ray:app`: the server as a Ray Serve application.

serve run rediprune.runtime.serving.ray:app bundles=demo=engines/demo-fp32 replicas=2
"""

from .cluster.ray_app import app

__all__ = ["app"]
