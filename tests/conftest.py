"""Tiny checkpoints and their bundles, made once and kept (`support.content_cache`); all is real but small."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.exporter import export_bundle

from .support.bundles import corrupt as corrupt_bundle
from .support.command_line import CommandLine, run_process, runs_here
from .support.content_cache import ContentCache, digest, files_digest, sources_digest
from .support.traces import FRESH, remembered, tracing_by

# Started in the background (`make test &`), a shell has SIGINT ignored, which every process below would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The workers of a run share the cores, and so do the processes that they start.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

# Ray makes a token for this user when it first starts; a worker that imported Ray before that could not talk to the Ray it
# starts after another worker has done so. So there is one from the beginning.
os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Ray's workers give way to every other process (niceness 15), and would wait for the tests beside them.
os.environ.setdefault("RAY_worker_niceness", "0")

MEDIA = Path(__file__).parent / "media"
DEMO = Path(__file__).parents[1] / "export" / "demo" / "checkpoint"

# Every family, tower, decoder and precision at least once.
BUNDLES = {
    "llava": ("llava", "clip", "llama", "fp32"),
    "llava_siglip": ("llava", "siglip", "qwen2", "fp32"),
    "llava_next_video": ("llava_next_video", "clip", "qwen2", "fp32"),
    "video_llava": ("video_llava", "clip", "llama", "fp32"),
    "llava_fp16": ("llava", "clip", "llama", "fp16"),
    "llava_qwen2": ("llava", "clip", "qwen2", "fp32"),
    "llava_qwen2_fp16": ("llava", "clip", "qwen2", "fp16"),
    "llava_next": ("llava_next", "clip", "mistral", "fp32"),
    "llava_qwen3": ("llava", "siglip", "qwen3", "fp32"),
    "internvl": ("internvl", "intern", "qwen2", "fp32"),
    "internvl_qwen3": ("internvl", "intern", "qwen3", "fp32"),
    "llava_onevision": ("llava_onevision", "siglip", "qwen2", "fp32"),
    "smolvlm": ("smolvlm", "smolvlm", "llama", "fp32"),
    "qwen2_vl": ("qwen2_vl", "qwen", "qwen2", "fp32"),
    "qwen2_5_vl": ("qwen2_5_vl", "qwen", "qwen2", "fp32"),
    "qwen3_vl": ("qwen3_vl", "qwen", "qwen3", "fp32"),
    "llava_copy": ("llava", "clip", "llama", "fp32"),  # weights copied; all others refer to the checkpoint's files
}

# What `make test` traces in a fresh clone, some ten seconds each; a test that asks for another bundle is marked `family`.
EVERYDAY = {"llava", "llava_copy", "llava_next_video", "llava_qwen2"}

# The kinds of slow tests (the Makefile's SLOW, the marks of pyproject.toml).
SLOW = {"slow", "trace", "rtx", "calibration", "demo", "process", "family", "openvino", "cuda", "server"}

# What a bundle depends on: also what `validate` keeps beside it, which is eager PyTorch's answers.
PACKAGES = ("graphs", "runtime", "calibration", "export")

# Who asks for one of these is slow, and of this kind (the marks of pyproject.toml).
_KINDS = {
    "bundles": "calibration",
    "int8": "calibration",
    "demo_bundle": "demo",
    "fresh_traces": "trace",
    "rediprune_process": "process",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures and bundles that they use, before those of some marks are chosen."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        for fixture, kind in _KINDS.items():
            if fixture in fixtures:
                item.add_marker(kind)
        values = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        asked = {value for value in values if isinstance(value, str)} & set(BUNDLES)
        if "bundle_of" in fixtures and asked - EVERYDAY:
            item.add_marker("family")


_slow_kinds: set[str] = set()  # of the test that runs


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note what the test is marked as, for `bundle_of`."""
    _slow_kinds.clear()
    _slow_kinds.update({mark.name for mark in item.iter_markers()} & SLOW)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is noted of the tests' bundles does not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDIPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def content_cache(pytestconfig: pytest.Config) -> ContentCache:
    """Where things that take long to make are kept from run to run."""
    assert pytestconfig.cache is not None
    cache = ContentCache(Path(pytestconfig.cache.mkdir("rediprune")))
    cache.drop_unused()
    return cache


@pytest.fixture(scope="session", autouse=True)
def _kept_traces(content_cache: ContentCache) -> Iterator[None]:
    """Exports take the graphs of stages that were traced before from the cache."""
    with tracing_by(remembered(FRESH, content_cache)):
        yield


@pytest.fixture(autouse=True)
def _stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that runs in this process does not end it, where a model is still loaded in the background."""
    monkeypatch.setattr("rediprune.runtime.__main__.leave_at_once", lambda code: None)


@pytest.fixture
def fresh_traces() -> Iterator[None]:
    """Exports trace every stage, as they do outside the tests."""
    with tracing_by(FRESH):
        yield


@pytest.fixture(scope="session")
def checkpoint_of(content_cache: ContentCache) -> Callable[[str], Path]:
    """Folder of a tiny checkpoint, by its name in `BUNDLES`. Tests must not change it."""

    def find(name: str) -> Path:
        family, tower, decoder, _ = BUNDLES[name]
        key = digest(sources_digest("export/checkpoint"), family, tower, decoder)
        called = f"{family}-{tower}-{decoder}"
        make = partial(make_checkpoint, family=family, tower=tower, decoder=decoder)
        return content_cache.folder("checkpoint", key, lambda folder: make(folder / called)) / called

    return find


@pytest.fixture(scope="session")
def export_of(content_cache: ContentCache) -> Callable[..., Path]:
    """Folder of the bundle of a checkpoint that lies in the cache or the repository. Tests must not change it."""

    def make(checkpoint: Path, called: str, precision: str = "fp32", copy: bool = False) -> Path:
        source = str(checkpoint), files_digest(sorted(checkpoint.iterdir()))
        key = digest(sources_digest(*PACKAGES), source, called, precision, copy)

        def export(folder: Path) -> None:
            export_bundle(Checkpoint.open(str(checkpoint)), folder / called, precision, copy=copy)

        return content_cache.folder("bundle", key, export) / called

    return make


@pytest.fixture(scope="session")
def bundle_of(checkpoint_of: Callable[[str], Path], export_of: Callable[..., Path]) -> Callable[[str], Path]:
    """Folder of a tiny bundle, by its name in `BUNDLES`. Tests must not change it."""

    def make(name: str) -> Path:
        assert name in EVERYDAY or _slow_kinds, f"mark this test `family`: it asks for {name}"
        return export_of(checkpoint_of(name), name, BUNDLES[name][3], copy=name == "llava_copy")

    return make


@pytest.fixture(scope="session")
def demo_bundle(export_of: Callable[..., Path]) -> Path:
    """The bundle of the trained checkpoint, which answers right. Tests must not change it."""
    return export_of(DEMO, "demo")


@pytest.fixture(scope="session")
def photo() -> Path:
    return MEDIA / "astronaut.jpg"


@pytest.fixture(scope="session")
def cat() -> Path:
    return MEDIA / "chelsea.jpg"


@pytest.fixture(scope="session")
def clip() -> Path:
    return MEDIA / "clip.mp4"


@pytest.fixture(scope="session")
def corrupt() -> Callable[..., Path]:
    """`support.bundles.corrupt`: a copy of a bundle with one stage's weights off."""
    return corrupt_bundle


@pytest.fixture
def rediprune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line in this process: `rediprune("run", bundle, …, code=2)`; what it printed and left with."""
    return runs_here(monkeypatch, capsys)


@pytest.fixture(scope="session")
def rediprune_process() -> CommandLine:
    """The same as a process, for what only a process shows; each takes seconds to start."""
    return run_process
