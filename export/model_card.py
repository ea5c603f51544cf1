"""The model card of a bundle, README.md: what the hub shows when the folder is pushed there. Free to edit."""

from pathlib import Path

from huggingface_hub import ModelCardData

from ..runtime.bundle import Manifest


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write `folder/README.md`; its front matter follows the hub's model card metadata."""
    base = manifest.source.name
    on_hub = not Path(base).is_absolute()
    data = ModelCardData(
        library_name="rediprune",
        pipeline_tag="image-text-to-text",
        base_model=base if on_hub else None,
        tags=["rediprune", "onnx", "token-pruning", manifest.family],
    )
    name = base if on_hub else Path(base).name
    title = f"{Path(name).name}, ReDiPrune {manifest.precision}"
    media = " and videos" if "video" in manifest.modalities else ""
    stages = ", ".join(f"`{stage}`" for stage in manifest.stages)
    text = f"""---
{data.to_yaml()}
---

# {title}

{manifest.family_name} ({manifest.tower} + {manifest.language_model}) exported from `{name}` to ONNX in
{manifest.precision} by rediprune {manifest.tool_version}. Questions about images{media}: visual tokens that do not
matter for the question are dropped before the projector ([ReDiPrune](https://arxiv.org/abs/2603.24680)), how many are
kept is chosen per request.

```console
$ pip install rediprune
$ hf download USER/REPOSITORY --local-dir bundle
$ rediprune run bundle --image photo.jpg --prompt "What is this?" --keep {manifest.defaults.keep}
```

```python
from rediprune.runtime import Pipeline

answer = Pipeline.load("bundle").generate("What is this?", images=["photo.jpg"], keep={manifest.defaults.keep})
```

Stages: {stages}. `rediprune inspect bundle` compares every file with its hash. The weights are those of `{name}` and
keep its licence, which belongs in this card before it is published.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
