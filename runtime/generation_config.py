"""What a checkpoint says of generation: its generation_config.json, or its config.json where that is absent."""

import json
from pathlib import Path
from typing import Any

from .errors import RedipruneError


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The settings that transformers' `generate` would take.

    Args:
        folder: of a checkpoint, or a bundle's `processor/`.

    Returns:
        The settings by name; those that are transformers' defaults may be absent.

    Raises:
        RedipruneError: a file is no JSON object, or config.json is of a model that transformers does not know.
    """
    document = read_json_object(folder / "generation_config.json")
    if document is not None:
        return document
    if not (folder / "config.json").is_file():
        return {}
    # Where there is no generation config, `generate` makes one of the model's config, classes' own defaults included:
    # a Llama without any word on it ends at token 2.
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return GenerationConfig.from_model_config(config).to_diff_dict()
    except Exception as error:  # whatever transformers makes of a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RedipruneError(f"{folder}/config.json cannot be read ({reason}): copy it anew") from None


def read_json_object(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file of a checkpoint; None where there is no such file.

    Raises:
        RedipruneError: it cannot be read, or is no object.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RedipruneError(f"{file} cannot be read ({error}): copy it anew from the checkpoint") from None
    if not isinstance(document, dict):
        raise RedipruneError(f"{file} is no JSON object: copy it anew from the checkpoint")
    return document
