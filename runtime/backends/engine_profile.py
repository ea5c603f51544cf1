"""Shapes held against the profile that an engine was built for, before the engine sees them."""

from collections.abc import Mapping

import numpy as np

from ..errors import RedipruneError
from .arrays import Array

Profile = Mapping[str, list[list[int]]]


def check_shapes(stage: str, profile: Profile, inputs: Mapping[str, Array], rebuild: str) -> None:
    """Refuse inputs that the profile does not cover; for `num_keep` its value counts.

    Raises:
        RedipruneError: names the input and its size, prints the profile and the command that builds another.
    """
    for name, (low, _, high) in profile.items():
        sizes = [int(np.asarray(inputs[name]))] if name == "num_keep" else list(inputs[name].shape)
        fits = len(sizes) == len(low) and all(a <= b <= c for a, b, c in zip(low, sizes, high, strict=True))
        if not fits:
            raise RedipruneError(
                f"the '{stage}' engine takes {_profile(profile)}, and {name} is {_shape(sizes)}; ask for less, or build "
                f"engines for more with: {rebuild} --profile …"
            )


def _profile(profile: Profile) -> str:
    # The cache tensors are all alike: the first stands for them.
    shown = [name for name in profile if not name.startswith("past.")]
    shown += [name for name in profile if name.startswith("past.")][:1]
    return ", ".join(f"{name} {_shape(profile[name][0])} to {_shape(profile[name][2])}" for name in shown)


def _shape(sizes: list[int]) -> str:
    return "×".join(map(str, sizes))
