"""Drawn scenes as a task of lmms-eval: `python -m rediprune_lmms_eval.drawn FOLDER`, then `--include_path FOLDER`.

A data set that needs no download: pictures and clips, a JSONL that lmms-eval's own loader reads, and the task's YAML. Also
a template for one's own data.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rediprune.calibration.tasks.media_folder import write_set

TASK = "rediprune_drawn"
_YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_messages: !function {utils}.doc_to_messages
doc_to_visual: !function {utils}.doc_to_visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
process_results: !function {utils}.process_results
metric_list:
  - metric: correct
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""
_UTILS = '''"""What the task of drawn scenes shows a model, and when an answer is correct."""

from PIL import Image


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    kind = "video" if doc["video"] else "image"
    url = doc["video"] or Image.open(doc["image"]).convert("RGB")
    return [{"role": "user", "content": [{"type": kind, "url": url}, {"type": "text", "text": doc["question"]}]}]


def doc_to_visual(doc):
    return [doc["video"] or Image.open(doc["image"]).convert("RGB")]


def process_results(doc, results):
    said = results[0].strip().rstrip(".").strip().casefold()
    return {"correct": float(said == doc["answer"].strip().casefold())}
'''


def write_task(folder: Path, images: int, clips: int, split: str = "test") -> Path:
    """Write pictures, clips, the JSONL and the task's YAML into a folder; the path of the YAML."""
    folder = folder.resolve()
    lines = [json.loads(line) for line in write_set(folder / "media", split, 0, images, clips).read_text().splitlines()]
    for line in lines:  # every line has the same columns, and paths that hold wherever lmms-eval is called
        for kind in ("image", "video"):
            line[kind] = str(folder / "media" / line[kind]) if line.get(kind) else ""
    data = folder / "drawn.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "drawn_utils.py").write_text(_UTILS, encoding="utf-8")
    path = folder / f"{TASK}.yaml"
    path.write_text(_YAML.format(task=TASK, data=data, utils="drawn_utils"), encoding="utf-8")
    return path


def main(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    images: Annotated[int, typer.Option(help="Pictures, about four questions each.")] = 25,
    clips: Annotated[int, typer.Option(help="Clips, likewise.")] = 10,
    split: Annotated[str, typer.Option(help="test, unseen, crowd or cells.")] = "test",
) -> None:
    """Write the task of drawn scenes."""
    print(write_task(folder, images, clips, split))


if __name__ == "__main__":
    typer.run(main)
