"""`python -m rediprune`: the command line."""

from .runtime.__main__ import main  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    main()
