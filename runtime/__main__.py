"""`python -m rediprune.runtime` is `rediprune`."""

from .cli import main

main()
