"""The server on Ray Serve: replicas behind a front that knows which of them has seen a picture."""

import os
import sys
from pathlib import Path


def use_token() -> None:
    """Show Ray's token to clusters that ask for it, where there is one: Ray itself does so only for those that it starts.

    Ray reads it when it is imported: call this before. Where it is imported already, whoever did so decides; a process that
    says one thing to itself and another to what it starts could not talk to it.
    """
    if "ray" in sys.modules:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or path.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


use_token()
