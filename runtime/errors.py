"""The one error a user is meant to read."""


class RedipruneError(Exception):
    """Something the user can mend: one line that says what is wrong and what to do about it."""
