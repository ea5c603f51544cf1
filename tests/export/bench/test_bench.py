"""The bench over tiny bundles: what it measures and what it says; never how fast anything is."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rediprune.export.bench import contenders
from rediprune.export.bench.bench import bench
from rediprune.export.bench.bench_page import write_page
from rediprune.export.bench.bench_settings import BenchSettings
from rediprune.export.bench.bench_table import print_table
from rediprune.export.bench.multiply_adds import multiply_adds
from rediprune.export.bench.peers import converted
from rediprune.export.bench.peers.llama_peer import _interleaved
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.export.validate.sample_media import sample_picture
from rediprune.graphs.selection.as_released import release_select
from rediprune.graphs.selection.counts import num_kept
from rediprune.graphs.selection.reference import select_tokens
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.__main__ import main
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.timing import TIMED_STAGES
from rich.console import Console


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rediprune.export.bench.roofline._SIDE", 64)
    monkeypatch.setattr("rediprune.export.bench.roofline._MEMORY", 1 << 16)


@pytest.mark.slow
def test_a_bench_tells_everything_and_writes_its_page(
    bundle_of: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    keeps = (1.0, 0.15)
    peers = ("eager", "released", "exported")
    settings = BenchSettings(image=photo, keeps=keeps, peers=peers, runs=1, threads=2)
    document = bench([bundle_of("llava")], settings)
    rows = {(row["contender"], row["keep"]): row for row in document["rows"]}
    released = "eager fp32, selection as released"
    ours = {("llava on auto", 1.0), ("llava on auto", 0.15)}
    assert set(rows) == ours | {("eager fp32", 1.0), (released, 0.15), ("exported", 1.0)}
    assert document["absent"] == {} and document["decoders"] == []
    for row in rows.values():
        assert 0 < row["fastest"] <= row["time_to_first_token"] <= row["slowest"]
        assert row["time_to_first_token"] < row["end_to_end"]  # medians of the same runs, however noisy these are
        assert sum(row["stages"].values()) <= row["slowest"] + 1e-3
        assert row["decode_token"] > 0 and row["peak_memory_bytes"] > 1 << 20
        assert row["start_up"] > row["fastest"]  # a process that starts, loads and answers
        assert bool(row["stages"].get("select")) == (row["keep"] < 1)
        assert row["gflops"]["vision"] > 0
    assert rows["llava on auto", 0.15]["decode_gb_per_second"] > 0
    ratios = document["speed_up"]["llava on auto, keep 0.15"]["eager fp32, keep 1"]
    peer, ours = rows["eager fp32", 1.0], rows["llava on auto", 0.15]
    assert ratios["first_token"] == peer["time_to_first_token"] / ours["time_to_first_token"]
    assert document["multiply_adds"]["0.15"]["prefill"] < document["multiply_adds"]["1"]["prefill"]
    assert all(value > 0 for value in document["ceilings"].values())
    json.dumps(document)

    files = write_page(document, tmp_path / "bench.md", "rediprune bench …")
    assert {file.name for file in files} == {"bench.md", "bench-keep.png", "bench-stages.png"}
    text = (tmp_path / "bench.md").read_text()
    assert f"{ratios['first_token']:.2f} ×" in text and "bench-keep.png" in text and "rediprune bench …" in text
    assert all(stage in text for stage in TIMED_STAGES)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in files)


@pytest.mark.process
def test_a_peer_that_fails_or_takes_too_long_is_left_out_with_its_reason(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(Bundle.open(bundle_of("llava")).manifest.source.name)
    listed, _ = contenders.peer_contenders(
        BenchSettings(peers=["eager"], keeps=(1.0,), threads=1), checkpoint, tmp_path
    )
    request = {"question": "?", "images": [], "videos": [], "frames": 1, "keep": 1.0, "new_tokens": 1}
    with pytest.raises(contenders.TurnError, match=r"took longer than 0 s"):
        contenders.take_turn(listed[0], [request], 1, 0.01)
    listed[0].arguments["dtype"] = "float31"
    with pytest.raises(contenders.TurnError, match="float31"):
        contenders.take_turn(listed[0], [request], 1, 60)

    def all_peers(*_):
        return listed, {"compiled": "there is no C++ compiler"}

    monkeypatch.setattr("rediprune.export.bench.bench.peer_contenders", all_peers)
    settings = BenchSettings(keeps=(0.5,), peers=("eager",), runs=1, threads=1, backends=("ort", "kernel"))
    document = bench([bundle_of("llava")], settings)
    assert set(document["absent"]) == {"compiled", "eager fp32", "llava on kernel"}
    assert "float31" in document["absent"]["eager fp32"]
    assert document["absent"]["llava on kernel"].startswith("backend 'kernel' runs the stages 'select' and")
    assert [row["contender"] for row in document["rows"]] == ["llava on ort"]


def test_where_no_bundle_runs_it_is_an_error(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(RedipruneError, match=r"no bundle runs on kernel: .*'select' and 'select_clip' only"):
        bench([bundle_of("llava")], BenchSettings(keeps=(0.5,), runs=1, threads=1, backends=("kernel",)))


@pytest.mark.family
def test_bad_requests_are_refused(bundle_of: Callable[[str], Path], clip: Path) -> None:
    with pytest.raises(RedipruneError, match="peer 'abacus' is not known"):
        bench([bundle_of("llava")], BenchSettings(peers=("abacus",)))
    with pytest.raises(RedipruneError, match="not of one checkpoint"):
        bench([bundle_of("llava"), bundle_of("llava_siglip")])
    with pytest.raises(RedipruneError, match="images only"):
        bench([bundle_of("llava")], BenchSettings(video=clip))
    with pytest.raises(RedipruneError, match="tiles"):
        bench([bundle_of("llava_next_video")])
    for name in ("internvl", "qwen3_vl"):
        with pytest.raises(
            RedipruneError, match="with pictures only, for its prompt has words between a video's frames"
        ):
            bench([bundle_of(name)], BenchSettings(video=clip))
    for name in ("internvl", "qwen3_vl"):
        other = BenchSettings(keeps=(0.5,), runs=1, threads=1, backends=("kernel",))
        with pytest.raises(RedipruneError, match="no bundle runs on kernel"):  # and the picture was taken
            bench([bundle_of(name)], other)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "video"), [("internvl", False), ("qwen2_5_vl", True), ("qwen3_vl", False)])
def test_pictures_of_any_size_and_tiles(name: str, video: bool, bundle_of: Callable[[str], Path], clip: Path) -> None:
    settings = BenchSettings(
        video=clip if video else None,
        frames=5,
        keeps=(0.5, 1.0),
        runs=1,
        threads=1,
        backends=("ort",),
        peers=("eager",),
    )
    document = bench([bundle_of(name)], settings)
    pipeline = Pipeline.load(bundle_of(name), "ort")
    images, videos = ([], [clip]) if video else ([sample_picture()], [])
    answer = pipeline.generate("What?", images, videos, frames=5, keep=0.5, max_new_tokens=1)
    assert document["model"]["visual_tokens"] == answer.visual_tokens
    assert document["model"]["frames"] == len(answer.kept[0])
    assert {row["keep"] for row in document["rows"]} >= {0.5, 1.0}
    assert document["multiply_adds"]["0.5"]["prefill"] < document["multiply_adds"]["1"]["prefill"]
    if name.startswith("qwen"):
        assert "Qwen-VL is none of them" in document["absent"]["eager fp32"]


@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_the_release_chooses_the_same_tokens(keep: float) -> None:
    generator = torch.Generator().manual_seed(3)
    features, query = torch.randn(2, 40, 24, generator=generator), torch.randn(24, generator=generator)
    count = num_kept(40, keep)
    assert torch.equal(torch.stack(release_select(features, query, count, 0.5)), select_tokens(features, query, count))


def test_multiply_adds_of_tokens_that_are_mixed(checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(str(checkpoint_of("llava_onevision")))
    skeleton = checkpoint.skeleton("fp32")
    text, vision = checkpoint.config.text_config, checkpoint.config.vision_config
    each = (vision.hidden_size + text.hidden_size) * text.hidden_size
    for kept, projected in ((2, 8), (9, 25)):  # of 3 × 3 cells of 5 × 5 patches
        assert multiply_adds(skeleton, "video", 3, kept, 7)["project"] == 3 * projected * each


def test_multiply_adds_are_those_counted_by_hand(checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(str(checkpoint_of("llava")))
    skeleton = checkpoint.skeleton("fp32")
    text, vision = checkpoint.config.text_config, checkpoint.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    counted = multiply_adds(skeleton, "image", 2, 5, 7)
    assert counted["project"] == 2 * 5 * (vision.hidden_size + text.hidden_size) * text.hidden_size

    def layer(tokens: int, cached: int, width: int, keys: int, inner: int, factors: int) -> int:
        attention = 2 * tokens * cached * width
        return tokens * (2 * width * width + 2 * width * keys + factors * width * inner) + attention

    width, keys = text.hidden_size, text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    head = width * text.vocab_size
    for name, tokens, cached in (("prefill", 17, 17), ("decode", 1, 18)):
        one = layer(tokens, cached, width, keys, text.intermediate_size, 3)
        # Rotary frequencies are a matrix product in transformers: far below a thousandth.
        assert counted[name] == pytest.approx(text.num_hidden_layers * one + head, rel=1e-3)
    one = layer(patches + 1, patches + 1, vision.hidden_size, vision.hidden_size, vision.intermediate_size, 2)
    embedding = patches * 3 * vision.patch_size**2 * vision.hidden_size
    # The last layer of the tower is not run: its output is not the feature layer.
    assert counted["vision"] == 2 * ((vision.num_hidden_layers - 1) * one + embedding)


_ALONE = """
def load(pace):
    def ask(request):
        return {"prefill": pace * request["positions"], "decode_token": pace, "total": 2 * pace}
    return ask
"""


def test_a_decoder_alone_is_asked_for_as_many_positions_as_the_prompt_takes(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text(_ALONE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    alone = contenders.Contender("alone", "alone", {"pace": 0.5}, (1.0, 0.5), 8, 4, whole=False)
    monkeypatch.setattr("rediprune.export.bench.bench.peer_contenders", lambda *_: ([alone], {}))
    document = bench([bundle_of("llava")], BenchSettings(keeps=(0.5,), peers=("alone",), runs=1, threads=1))
    assert [row["contender"] for row in document["rows"]] == ["llava on auto"]
    assert all(not ratios for ratios in document["speed_up"].values())
    patches, prompt = document["model"]["visual_tokens"], document["model"]["prompt_tokens"]
    seconds = {row["keep"]: row["stages"] for row in document["decoders"]}
    assert seconds == {1.0: {"prefill": 0.5 * (prompt + patches)}, 0.5: {"prefill": 0.5 * (prompt + patches / 2)}}
    assert {row["tokens_per_second"] for row in document["decoders"]} == {2.0}
    assert {row["decode_gb_per_second"] for row in document["decoders"]} == {8e-9}
    console = Console(file=io.StringIO(), width=100)
    print_table(console, document)
    assert "alone, keep 1" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    write_page(document, tmp_path / "bench.md", "rediprune bench …")
    page = (tmp_path / "bench.md").read_text()
    assert f"| alone | 0.5 | {0.5 * (prompt + patches / 2):.3f} | 2.0 |" in page


@pytest.mark.parametrize("lacking", ["package", "python"])
def test_a_peer_without_its_environment_is_refused_with_the_recipe(
    bundle_of: Callable[[str], Path],
    lacking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    form = replace(converted.PEER_FORMATS["llama.cpp"], packages=("no_such_package",))
    monkeypatch.setitem(converted.PEER_FORMATS, "llama.cpp", form)
    command = ["bench", str(bundle_of("llava")), "--peers", "llama.cpp"]
    if lacking == "python":
        command += ["--peers-python", str(tmp_path / "python")]
    monkeypatch.setattr(sys, "argv", ["rediprune", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "make bench-peers" in said and "--peers-python" in said


def test_what_a_peer_reads_is_made_once_and_never_by_halves(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(RedipruneError, match=r"its form of the checkpoint could not be made: .*Error"):
        converted.converted("llama.cpp", tmp_path / "checkpoint", tmp_path / "made", sys.executable)
    assert list((tmp_path / "made").iterdir()) == []
    (tmp_path / "made" / "llama.cpp").mkdir()
    kept = converted.converted("llama.cpp", tmp_path / "checkpoint", tmp_path / "made", "no interpreter needed")
    assert kept == tmp_path / "made" / "llama.cpp"


def test_rows_laid_out_for_llama_cpp_turn_as_the_checkpoints_do() -> None:
    heads, half, width = 3, 4, 5
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((heads * 2 * half, width)), random.standard_normal(width)
    angle = random.standard_normal(half)
    ours = (weight @ x).reshape(heads, 2, half)  # the checkpoint's pairs: halves of a head
    theirs = (_interleaved(weight, heads) @ x).reshape(heads, half, 2)  # llama.cpp's: neighbours
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # [2, 2, half]
    turned = np.einsum("abi,hbi->hai", turn, ours), np.einsum("abi,hib->hia", turn, theirs)
    assert np.allclose(turned[0], turned[1].swapaxes(1, 2), rtol=0, atol=1e-12)
