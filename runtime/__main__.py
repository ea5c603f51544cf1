"""The entry point: `rediprune`, and `python -m rediprune.runtime`."""

import sys

from .background import leave_at_once


def main() -> None:
    """Run the command line; Ctrl-C leaves with one line and code 130 whenever it comes, imports included."""
    try:
        from .cli.app import main as run

        run()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:
        if leaving.code == 130:  # typer's own way to say so
            _interrupted()
        if isinstance(leaving.code, int):
            leave_at_once(leaving.code)
        raise


def _interrupted() -> None:
    sys.stderr.write("interrupted\n")
    leave_at_once(130)
    sys.exit(130)


if __name__ == "__main__":
    main()
