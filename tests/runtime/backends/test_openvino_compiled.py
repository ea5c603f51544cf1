"""Compiled models from the cache are those that were compiled, or are compiled again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rediprune.calibration.calibrate import calibrate
from rediprune.export.build.cpu_engines import build_cpu
from rediprune.runtime.backends import openvino_compiled
from rediprune.runtime.backends.session import open_language, open_stage
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import RedipruneError

pytestmark = pytest.mark.openvino

pytest.importorskip("openvino")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder."""
    monkeypatch.setenv("REDIPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def bundle(bundle_of: Callable[[str], Path], tmp_path: Path, cached: Path) -> Bundle:
    """A bundle with INT8 weights, built for OpenVINO, whose build compiled every stage."""
    calibrate(bundle_of("llava"), tmp_path / "blocks", "int8-weights")
    build_cpu(tmp_path / "blocks", "openvino")
    return Bundle.open(tmp_path / "blocks")


def logits(bundle: Bundle) -> np.ndarray:
    decoding = open_language("openvino", bundle, 1).start(12)
    embeds = np.random.default_rng(0).standard_normal((1, 9, bundle.manifest.decoder.width), np.float32)
    return np.stack([decoding.step(embeds), decoding.step(embeds[:, :1])])


def features(bundle: Bundle) -> np.ndarray:
    size = bundle.manifest.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    return np.asarray(open_stage("openvino", bundle, "vision", 1).run({"pixel_values": pixels})["features"])


def test_models_from_the_cache_give_the_same_to_the_bit(
    bundle: Bundle, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {path.name for path in cached.glob("*.blob")}
    assert len(kept) == 3  # vision, project and language; embed is in float32
    again = logits(bundle), features(bundle)
    assert len(set(cached.glob("*.blob"))) == 5  # with one thread they are others
    third = logits(bundle), features(bundle)
    monkeypatch.setenv(openvino_compiled.LIMIT, "0")
    fresh = logits(bundle), features(bundle)
    for first, second, compiled in zip(again, third, fresh, strict=True):
        assert np.array_equal(first, second) and np.array_equal(first, compiled)


def test_a_file_that_was_changed_is_not_used(bundle: Bundle, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = features(bundle)
    for path in cached.glob("*.blob"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        path.write_bytes(content)
    imported: list[bool] = []
    load = openvino_compiled._load

    def watched(*arguments: object) -> object:
        found = load(*arguments)  # type: ignore[arg-type]
        imported.append(found is not None)
        return found

    monkeypatch.setattr(openvino_compiled, "_load", watched)
    assert np.array_equal(features(bundle), before)
    assert np.array_equal(features(bundle), before)
    assert imported == [False, True]


def test_the_files_used_longest_ago_leave(bundle: Bundle, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(path.stat().st_size for path in cached.glob("*.blob"))
    monkeypatch.setenv(openvino_compiled.LIMIT, str(largest))
    logits(bundle)
    assert sum(path.stat().st_size for path in cached.glob("*.blob")) <= largest
    assert {path.stem for path in cached.glob("*.json")} == {path.stem for path in cached.glob("*.blob")}


def test_what_was_not_built_is_not_kept(bundle_of: Callable[[str], Path], tmp_path: Path, cached: Path) -> None:
    features(Bundle.open(shutil.copytree(bundle_of("llava"), tmp_path / "fp32")))
    assert not cached.exists()


def test_a_bound_that_is_none_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("4GB", "-1"):
        monkeypatch.setenv(openvino_compiled.LIMIT, text)
        with pytest.raises(RedipruneError, match="REDIPRUNE_CACHE_LIMIT takes a number of bytes"):
            features(bundle)


def test_activations_are_rounded_in_blocks_of_the_weights_from_the_cache_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own groups of 32 make prefills slower."""
    opened = [open_language("openvino", bundle, 1).session]  # type: ignore[attr-defined]
    opened.append(open_language("openvino", bundle, 1).session)  # type: ignore[attr-defined]
    monkeypatch.setenv(openvino_compiled.LIMIT, "0")
    opened.append(open_language("openvino", bundle, 1).session)  # type: ignore[attr-defined]
    assert [session.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") for session in opened] == [64] * 3


@pytest.mark.parametrize(("widths", "group"), [((256, 384), 128), ((256, 192), 64), ((256, 96), None), ((), None)])
def test_the_largest_block_that_divides_all_widths_is_taken(widths: tuple[int, ...], group: int | None) -> None:
    import openvino.opset15 as ops
    from openvino import Model
    from rediprune.runtime.backends.openvino_decoder import round_in_blocks

    outputs, inputs = [], []
    for width in widths or (8,):
        inputs.append(ops.parameter([1, width], np.float32))
        weight = ops.constant(np.ones((width, 4), np.int8 if widths else np.float32))
        outputs.append(ops.matmul(inputs[-1], ops.convert(weight, np.float32), False, False))
    model = Model(outputs, inputs, "products")
    round_in_blocks(model, "int8-weights")
    place = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
    assert model.has_rt_info(place) == (group is not None)
    if group is not None:
        assert model.get_rt_info(place).astype(int) == group
