"""VLMEvalKit with a bundle: `python integrations/vlmevalkit.py BUNDLE KEEP -- --data MME POPE --verbose`.

VLMEvalKit has no registry for models of others, so this enters one and calls its `run.py`, which must be in the current
folder (VLMEvalKit's checkout) or on PYTHONPATH. What follows `--` goes to `run.py`, but for --model.
"""

import runpy
import sys
from functools import partial

from rediprune.runtime import Pipeline
from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

NAME = "rediprune"


class Rediprune(BaseModel):
    """A bundle as VLMEvalKit's models are: interleaved texts, pictures and whole videos."""

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(self, bundle: str, keep: float | int, frames: int = 8, **settings):
        super().__init__()
        self.pipeline = Pipeline.load(bundle)
        self.settings = {"keep": keep, "frames": frames, "temperature": 0.0, "max_new_tokens": 512, **settings}

    def generate_inner(self, message, dataset=None):
        """message: a list of {type: text, image or video, value: the text or the path}."""
        content, media = [], {"image": [], "video": []}
        for part in message:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["value"]})
            else:
                content.append({"type": part["type"]})
                media[part["type"]].append(part["value"])
        dialogue = [{"role": "user", "content": content}]
        return self.pipeline.generate(dialogue, media["image"], media["video"], **self.settings).text


def main() -> None:
    """Enter the model and run VLMEvalKit."""
    ours, _, theirs = (" ".join(sys.argv[1:])).partition(" -- ")
    bundle, keep = ours.split()
    ratio = float(keep) if "." in keep or keep == "1" else int(keep)
    supported_VLM[NAME] = partial(Rediprune, bundle=bundle, keep=ratio)
    sys.argv = ["run.py", *theirs.split(), "--model", NAME]
    runpy.run_path("run.py", run_name="__main__")


if __name__ == "__main__":
    main()
