"""Idefics3, of which SmolVLM is a smaller relative: the same tower, shuffle and connector."""

from .smolvlm import DECODERS, modalities, own_stages

__all__ = ["DECODERS", "MODEL_TYPE", "NAME", "modalities", "own_stages"]

MODEL_TYPE = "idefics3"
NAME = "Idefics3"
