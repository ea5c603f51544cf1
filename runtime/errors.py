"""The errors that a user may see, and the one that stops work nobody waits for."""


class RedipruneError(Exception):
    """What is wrong and how to mend it, in one line. The command line prints it and exits with code 2."""


class AbandonedError(RedipruneError):
    """Nobody waits for this request any more; raised by the `pulse` of `Pipeline.prepare`."""
