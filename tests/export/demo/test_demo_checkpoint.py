"""The committed checkpoint: it loads in plain transformers, sees, and still sees with 15 % of its tokens."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rediprune.export.demo.model as demo
import torch
from PIL import Image
from rediprune.calibration.tasks.clips import sample_clip
from rediprune.calibration.tasks.drawn_task import samples
from rediprune.calibration.tasks.scenes import SIDE, sample_scene
from rediprune.export.demo.evaluate_eager import (
    answers,
    evaluate,
    features_of,
    prompt_ids,
    select,
    vision_features,
)
from rediprune.export.demo.packed_answers import answer_logits, select_marked, take
from rediprune.export.demo.packing import KINDS, NOTHING, chunk, clip_row, encode, image_row, pack
from rediprune.export.demo.recipe import Recipe
from rediprune.export.demo.train import Trainer
from rediprune.graphs.selection.query_vector import pool_query
from rediprune.graphs.selection.reference import select_tokens
from transformers import AutoModelForImageTextToText, AutoProcessor

CHECKPOINT = Path(demo.__file__).parent / "checkpoint"


@cache
def checkpoint():
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


def test_weights_fit_the_repository() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.glob("*.safetensors")) <= 12_000_000


def ask(question: str, pictures: np.ndarray) -> dict:
    """Model inputs, as any user of transformers makes them."""
    _, processor = checkpoint()
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=prompt, images=[Image.fromarray(p) for p in pictures], return_tensors="pt")


def generated(question: str, pictures: np.ndarray) -> str:
    model, processor = checkpoint()
    inputs = ask(question, pictures)
    ids = model.generate(**inputs)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.demo
def test_plain_transformers_answers_questions_about_pictures() -> None:
    test = list(samples("test", 7, images=12, clips=0))
    right = [generated(s.question, s.pictures()) == s.answer for s in test]
    assert len(test) > 40 and np.mean(right) >= 0.95


@pytest.mark.demo
def test_plain_transformers_answers_questions_about_a_clip() -> None:
    test = list(samples("test", 7, images=0, clips=3))
    right = [generated(s.question, s.pictures()) == s.answer for s in test]
    assert len(test) >= 8 and np.mean(right) >= 0.85


@pytest.mark.demo
@pytest.mark.smoke
def test_pruned_to_15_percent_it_still_answers_and_random_tokens_lose() -> None:
    model, _ = checkpoint()
    test = list(samples("test", 8, images=20, clips=0))
    scores = evaluate(model, test, keeps=(0.15,), rules=("rediprune", "random"))
    assert scores["rediprune@0.15"]["all"] >= 0.95
    assert scores["rediprune@0.15"]["all"] >= scores["random@0.15"]["all"] + 0.15


@pytest.mark.demo
def test_splicing_all_tokens_is_plain_generation() -> None:
    model, _ = checkpoint()
    for sample in samples("test", 9, images=2, clips=1):
        said = answers(model, features_of(model, [sample]), [sample.question])
        assert said == [generated(sample.question, sample.pictures())]


def test_training_pixels_and_prompt_are_those_of_the_saved_processor() -> None:
    model, _ = checkpoint()
    sample = next(samples("test", 10, images=1, clips=0))
    inputs = ask(sample.question, sample.pictures())
    placeholder = model.config.image_token_id
    text = [i for i in inputs["input_ids"][0].tolist() if i != placeholder]
    assert text == [i for i in prompt_ids(sample.question, 1) if i != placeholder]
    with torch.no_grad():
        plain = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        ours = vision_features(model, torch.tensor(sample.pictures()))
    assert torch.allclose(plain, ours, atol=1e-3)
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)


def test_packed_questions_do_not_see_each_other() -> None:
    model, _ = checkpoint()
    drawn = chunk(1, 0, 1, 1, split="val")
    row = torch.tensor(drawn["image_rows"][:, 0]).long()
    with torch.no_grad():
        visual = model.model.multi_modal_projector(vision_features(model, torch.tensor(drawn["images"])))[None]
        packed = answer_logits(model, visual, row)[0]
        for block in range(int(row[0, 1].max()) + 1):
            at = row[0, 1] == block
            alone = torch.zeros_like(row)
            alone[:, 1], alone[:, 3] = -1, NOTHING
            alone[:, :, : int(at.sum())] = row[:, :, at]
            assert torch.allclose(packed[at], answer_logits(model, visual, alone)[0][: int(at.sum())], atol=1e-3)


def test_a_packed_row_asks_for_the_answers() -> None:
    rng = np.random.default_rng(0)
    row = pack([("Is it?", "no", "exists"), ("What is it?", "red star", "colour")], rng)
    decode = demo.tokenizer().decode
    for block, answer in enumerate(("no", "red star")):
        at = row[1] == block
        target = row[3][at]
        assert decode(target[target != NOTHING].tolist()).strip() == answer
        assert (
            target[-1] == demo.EOS
            and (row[0][at][1:][target[:-1] != NOTHING] == target[:-1][target[:-1] != NOTHING]).all()
        )
    marked = decode(row[0][row[5] == 1].tolist())
    assert marked in ("\nIs it? ASSISTANT:", "\nWhat is it? ASSISTANT:")


def test_batched_selection_in_training_is_the_method() -> None:
    model, _ = checkpoint()
    drawn = chunk(2, 0, 2, 1, split="val")
    for medium in ("image", "clip"):
        rows = torch.tensor(drawn[medium + "_rows"][:, 1]).long()
        pictures = torch.tensor(drawn[medium + "s"])
        with torch.no_grad():
            features = vision_features(model, pictures.flatten(0, -4) if pictures.ndim == 5 else pictures)
            features = features.view(len(rows), -1, *features.shape[1:])
            queries = [pool_query(model.get_input_embeddings()(row[0][row[5] == 1])) for row in rows]
        picked = select_marked(model, features, rows, 0.15)
        evaluated = select("rediprune", features, queries, 0.15)
        for i, query in enumerate(queries):
            truth = select_tokens(features[i], query, 0.15)
            assert torch.equal(picked[i], truth) and torch.equal(evaluated[i], truth)
        assert take(features, picked).shape == (len(rows), features.shape[1], 29, demo.WIDTH)


@pytest.mark.parametrize("rule", ["diversity", "relevance", "random", "uniform"])
def test_every_rule_keeps_distinct_tokens_in_order(rule: str) -> None:
    features = torch.randn(2, 3, demo.TOKENS, demo.WIDTH, generator=torch.Generator().manual_seed(0))
    for keep, count in ((0.5, 98), (0.15, 29), (0.1, 20)):
        picked = select(rule, features, [torch.ones(demo.WIDTH)] * 2, keep)
        assert picked.shape == (2, 3, count)
        assert (picked.diff(dim=-1) > 0).all() and picked.min() >= 0 and picked.max() < demo.TOKENS


def test_words_of_the_task_are_single_tokens() -> None:
    rng = np.random.default_rng(3)
    for row in (image_row(rng, sample_scene(rng), False), clip_row(rng, sample_clip(rng))):
        assert set(row[4]) <= {-1, *range(len(KINDS))}
    assert all(len(encode(f" {word}")) == 1 for word in ("red", "purple", "diamond", "yes", "left", "7", "K"))
    assert demo.tokenizer().decode(list(encode(" zweiundvierzig ☂"))) == " zweiundvierzig ☂"


def test_the_learning_rate_warms_up_and_decays_in_each_stage() -> None:
    recipe = Recipe(tower_steps=10, steps=100, pruned_steps=50, warmup=5)
    assert [recipe.stage(step) for step in (9, 10, 109, 110)] == ["tower", "whole", "whole", "pruned"]
    rates = [recipe.rate_at(step) for step in range(recipe.total)]
    assert max(rates) <= recipe.rate and rates[109] < 0.05 * recipe.rate
    assert max(rates[110:]) <= recipe.pruned_rate and rates[-1] < 0.05 * recipe.pruned_rate


@pytest.mark.demo
def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    recipe = Recipe(tower_steps=0, steps=4, pruned_steps=0, images=1, clips=1, delay=1, warmup=2, blind=True)

    def trainer(name: str) -> Trainer:
        return Trainer(recipe, tmp_path / name, "cpu", workers=0, compiled=False)

    monkeypatch.setattr(Trainer, "validate", lambda *_: {})
    whole = trainer("whole")
    whole.run(minutes=9, every=10)
    step = Trainer.train_step

    def interrupted(self: Trainer, parts) -> dict:
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, parts)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    trainer("parts").run(minutes=9, every=10)
    monkeypatch.setattr(Trainer, "train_step", step)
    second = trainer("parts")
    assert second.step == 2
    second.run(minutes=9, every=10)
    assert second.step == whole.step == 4
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(SystemExit, match="another recipe"):
        Trainer(Recipe(steps=5, blind=True), tmp_path / "parts", "cpu", workers=0, compiled=False)


@pytest.mark.demo
def test_a_frozen_tower_stays_as_it_was_also_when_interrupted(tmp_path: Path, monkeypatch) -> None:
    settings = {"tower_steps": 0, "steps": 0, "images": 1, "clips": 1, "delay": 1, "warmup": 1, "easy": 0}
    recipe = Recipe(**settings, pruned_steps=2, seed=7, start=str(CHECKPOINT), frozen=True, focus="place")

    def trained(name: str, minutes: float) -> Trainer:
        trainer = Trainer(recipe, tmp_path / name, "cpu", workers=0, compiled=False)
        trainer.run(minutes, every=10)
        return trainer

    monkeypatch.setattr(Trainer, "validate", lambda *_: {})
    whole = trained("whole", 9)
    assert trained("parts", 0).step == 1
    parts = trained("parts", 9)
    assert parts.step == whole.step == 2
    before = checkpoint()[0].state_dict()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, parts.model.state_dict()[name])
        assert torch.equal(weight, before[name]) == ("vision_tower" in name), name


def kinds_asked(medium: str, focus: tuple[str, ...]) -> list[str]:
    rows = chunk(0, 4, 6, 6, draw_pictures=False, focus=focus)[medium + "_rows"]  # [N, ROWS, 6, T]
    return [KINDS[kind] for kind in rows[:, :, 4][(rows[:, :, 2] == 0) & (rows[:, :, 1] >= 0)]]


@pytest.mark.parametrize(("medium", "kind", "other"), [("image", "place", "colour"), ("clip", "happens", "what")])
def test_kinds_in_focus_are_asked_about_more_often_and_the_others_still(medium: str, kind: str, other: str) -> None:
    plain, once, often = (kinds_asked(medium, (kind,) * times) for times in (0, 1, 4))
    assert plain.count(kind) < once.count(kind) < often.count(kind)
    assert often.count(other) > 0
    other_medium = {"image": "clip", "clip": "image"}[medium]
    assert kinds_asked(other_medium, (kind,)) == kinds_asked(other_medium, ())
