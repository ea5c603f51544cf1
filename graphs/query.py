"""The query vector, under the name that callers import it by; the code lies beside the rest of the method."""

from .selection.query_vector import match_width, pool_query

__all__ = ["match_width", "pool_query"]
