"""transformers is imported with its models' sources read once, and finds the same classes as by itself."""

import json
import subprocess
import sys

FACTS = """
import json, sys
sys.modules["torch"] = None
{imported}
from transformers.utils import import_utils as finder
models = sys.modules["transformers.models"]
structure = finder.define_import_structure.__wrapped__(models.__file__)
names = {{name: module for found in structure.values() for module, names in found.items() for name in names}}
print(json.dumps({{
    "read": reads, "classes": {{name: models._class_to_module[name] for name in sorted(names)}},
    "restored": hasattr(finder.create_import_structure_from_path, "cache_info"),
    "tokenizer": tokenizer.__name__,
}}))
"""
OURS = """
from rediprune.runtime.media.transformers_classes import transformers_class
tokenizer = transformers_class("AutoTokenizer")
from transformers.utils.import_utils import create_import_structure_from_path as find
reads = find.cache_info().misses
"""
THEIRS = """
from transformers import AutoTokenizer as tokenizer
from transformers.utils.import_utils import create_import_structure_from_path as find
reads = find.cache_info().misses
"""


def facts(imported: str) -> dict[str, object]:
    """What a new process has found once it has imported a class."""
    program = FACTS.format(imported=imported)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_models_are_looked_through_once_and_the_same_classes_found() -> None:
    ours, theirs = facts(OURS), facts(THEIRS)
    assert len(ours["classes"]) > 1000  # pyright: ignore[reportArgumentType]
    assert ours["classes"] == theirs["classes"]
    assert ours["tokenizer"] == theirs["tokenizer"] == "AutoTokenizer"
    assert ours["restored"]
    assert ours["read"] < 0.6 * theirs["read"]  # pyright: ignore[reportOperatorIssue]
