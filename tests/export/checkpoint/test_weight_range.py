"""A weight that the precision cannot hold is found at export, whatever the model's size."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rediprune.export.checkpoint import weight_files
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.checkpoint.weight_files import StoredTensor, stored_keys
from rediprune.export.checkpoint.weight_range import check_range
from rediprune.export.exporter import export_bundle
from rediprune.runtime import RedipruneError
from safetensors.torch import load_file, save_file
from torch import Tensor

DOWN = "model.language_model.layers.0.mlp.down_proj.weight"


def stored(file: Path, **tensors: Tensor) -> list[StoredTensor]:
    save_file(tensors, file)
    return list(stored_keys([file]).values())


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "checkpoint"))


def put(folder: Path, key: str, value: float, dtype: torch.dtype = torch.bfloat16) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[key].view(-1)[-1] = value
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("key", [DOWN, "lm_head.weight", "model.vision_tower.pre_layrnorm.weight"])
@pytest.mark.parametrize("value", [70000.0, -70000.0])
def test_a_weight_beyond_fp16_is_named(checkpoint: Path, tmp_path: Path, key: str, value: float) -> None:
    """vllm#14126: unseen, it makes the first token's id every token's. The whole graph need not be compared for it."""
    put(checkpoint, key, value)
    assert key in load_file(checkpoint / "model.safetensors")
    with pytest.raises(
        RedipruneError, match=rf"'{key}' in '.*' has the value -?7\d{{4}}, which float16 .*bf16"
    ) as error:
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", "fp16", check=False)
    assert "\n" not in str(error.value) and "fp32" in str(error.value)
    assert not list(tmp_path.glob("bundle*"))


def test_fp32_takes_it(checkpoint: Path, tmp_path: Path) -> None:
    put(checkpoint, DOWN, 70000.0)
    assert export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", "fp32", check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_not_finite(checkpoint: Path, tmp_path: Path, precision: str, value: str) -> None:
    put(checkpoint, DOWN, float(value))
    with pytest.raises(RedipruneError, match=rf"'{DOWN}' .* is {value} in places"):
        export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", precision, check=False)
    assert not (tmp_path / "bundle").exists()


def test_what_the_model_does_not_have_may_be_anything(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "model.safetensors"
    save_file(load_file(file) | {"value_head.weight": torch.tensor([float("nan")])}, file, metadata={"format": "pt"})
    assert export_bundle(Checkpoint.open(str(checkpoint)), tmp_path / "bundle", check=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_value_that_is_held(tmp_path: Path, dtype: torch.dtype) -> None:
    least = torch.tensor(65504.0).to(dtype)
    check_range(stored(tmp_path / "good", a=least.clone() if dtype != torch.bfloat16 else torch.tensor(65280.0, dtype=dtype)), torch.float16)  # fmt: skip
    if dtype != torch.float16:
        for value in (65536.0, -65536.0):
            with pytest.raises(RedipruneError, match="'a'"):
                check_range(stored(tmp_path / "bad", a=torch.tensor([[1.0, value]], dtype=dtype)), torch.float16)


def test_65519_rounds_to_the_largest(tmp_path: Path) -> None:
    check_range(stored(tmp_path / "good", a=torch.tensor([65519.0])), torch.float16)
    with pytest.raises(RedipruneError):
        check_range(stored(tmp_path / "bad", a=torch.tensor([65520.0])), torch.float16)


def test_beyond_float32(tmp_path: Path) -> None:
    with pytest.raises(RedipruneError, match="which float32 cannot hold"):
        check_range(stored(tmp_path / "bad", a=torch.tensor([1e39], dtype=torch.float64)), torch.float32)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (64, 32), (7, 3, 2, 2)])
@pytest.mark.parametrize("limit", [1, 64, 1 << 24])
def test_a_tensor_comes_in_chunks(
    tmp_path: Path, shape: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than the limit at once, but for a single row that is larger; together they are the tensor."""
    monkeypatch.setattr(weight_files, "_CHUNK", limit)
    whole = torch.randn(shape)
    (tensor,) = stored(tmp_path / "file", a=whole)
    chunks = list(tensor.chunks())
    row = whole[:1].nbytes if shape else whole.nbytes
    assert all(chunk.nbytes <= max(limit, row) for chunk in chunks)
    assert torch.equal(torch.cat(chunks) if shape and chunks else (chunks[0] if chunks else whole), whole)
