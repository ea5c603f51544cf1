"""What tests share; they get at it through the fixtures of `tests/conftest.py`."""
