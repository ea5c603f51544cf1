"""The one error a user may see."""


class RedipruneError(Exception):
    """What is wrong and how to mend it, in one line. The command line prints it and exits with code 2."""
