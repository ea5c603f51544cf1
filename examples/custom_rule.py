"""A selection rule of your own in place of ReDiPrune's, beside it.

    python examples/custom_rule.py BUNDLE PICTURE [QUESTION]

A rule is a session of the stage `select`: features and a count in, indices and kept features out. This one keeps what
stands out: the tokens least like the mean of their frame, whatever the question is.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rediprune import Pipeline


class StandsOut:
    """Keeps the K tokens of each frame with the lowest cosine to the frame's mean; ties go to the lowest index."""

    batch = 1  # frames per run; the stage `select` gets all frames of a picture or video at once

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Select from features [F, P, C]; `text_embeds` [L, D], `alpha` and `tau` are there too.

        Returns:
            `indices` [F, K] int64, ascending, and `kept` [F, K, C].
        """
        features = np.asarray(inputs["features"])
        count = int(inputs["num_keep"])
        unit = features / np.linalg.norm(features, axis=2, keepdims=True)
        likeness = np.einsum("fpc,fc->fp", unit, features.mean(axis=1))  # [frames, patches]
        indices = np.sort(np.argsort(likeness, axis=1, kind="stable")[:, :count], axis=1)
        return {"indices": indices, "kept": np.take_along_axis(features, indices[:, :, None], axis=1)}


def main(bundle: str, picture: str, question: str = "What is above the orange triangle?") -> None:
    """Answer with ReDiPrune's selection and with this one, and say how many tokens both keep."""
    pipe = Pipeline.load(bundle)
    options: dict[str, Any] = {"images": [picture], "keep": 0.15, "temperature": 0}
    ours = pipe.generate(question, **options)
    with pipe.replaced(select=StandsOut()):
        theirs = pipe.generate(question, **options)
    both = np.intersect1d(ours.kept[0], theirs.kept[0]).size
    print(f"ReDiPrune:  {ours.text}")
    print(f"stands out: {theirs.text}")
    print(f"{both} of {ours.kept_tokens} kept tokens are the same")


if __name__ == "__main__":
    main(*sys.argv[1:])
