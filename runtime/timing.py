"""The parts that the time to the first token is made of, by their keys in `Answer.timings`."""

TIMED_STAGES = ("preprocess", "vision", "select", "project", "embed", "prefill")
