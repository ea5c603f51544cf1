"""One question about every picture of a folder, the answers as JSON lines.

    python examples/folder_of_pictures.py BUNDLE FOLDER QUESTION [KEEP] > answers.jsonl

A picture that cannot be read is reported with its error, and the others go on.
"""

import json
import sys
from pathlib import Path

from rediprune import Pipeline, RedipruneError

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def main(bundle: str, folder: str, question: str, keep: str = "0.15") -> None:
    """Print one JSON document a picture: its path and the answer, or the error."""
    pipe = Pipeline.load(bundle)
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() not in PICTURES:
            continue
        try:
            answer = pipe.generate(question, images=[path], keep=float(keep), temperature=0, max_new_tokens=64)
        except RedipruneError as error:
            print(json.dumps({"picture": str(path), "error": str(error)}), flush=True)
            continue
        milliseconds = round(1000 * answer.timings["time_to_first_token"])
        document = {"picture": str(path), "answer": answer.text, "kept": answer.kept_tokens}
        print(json.dumps(document | {"first_token_ms": milliseconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
