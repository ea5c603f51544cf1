"""Accuracy of the demo checkpoint in eager PyTorch: per kind of question, keep ratio and selection rule."""

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...calibration.evaluation.selection_rules import uniform_grid
from ...calibration.tasks.drawn_task import Sample, majority, samples
from ...graphs.selection.counts import num_kept, query_ids
from ...graphs.selection.query_vector import match_width, pool_query
from ...graphs.selection.reference import max_min_select, score_tokens
from .model import BOS, EOS, FEATURE_LAYER, IMAGE, PAD, tokenizer
from .packing import encode

RULES = ("rediprune", "diversity", "relevance", "random", "uniform")
KEEPS = (1.0, 0.5, 0.25, 0.15, 0.1)
ALPHA = 0.5


def vision_features(model: LlavaForConditionalGeneration, pictures: Tensor) -> Tensor:
    """Features before the projector: pictures [N, H, W, 3] in 0 … 255 → [N, P, C], without CLS."""
    mean, std = (
        constant(tuple(OPENAI_CLIP_MEAN), pictures.device),
        constant(tuple(OPENAI_CLIP_STD), pictures.device),
    )
    pixels = ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return tower(model, pixels)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small tensor kept on the device: making it anew would stall a GPU's queue at every step."""
    return torch.tensor(values, device=device)


def tower(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Normalised pixels [N, 3, H, W] → features [N, P, C]; the layer that LLaVA does not read is not run."""
    vision = model.model.vision_tower
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[: FEATURE_LAYER + 1]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


def select(rule: str, features: Tensor, queries: Tensor | Sequence[Tensor], keep: float, seed: int = 0) -> Tensor:
    """Kept indices by any rule, for many requests at once; the frames of all requests are one batch.

    Args:
        rule: one of RULES; "rediprune" is `graphs.selection` itself.
        features: [B, F, P, C].
        queries: B query vectors [D], one for each request.
        keep: the keep ratio.
        seed: of "random".

    Returns:
        [B, F, K] int64, ascending.

    Raises:
        ValueError: no such rule.
    """
    batch, frames, patches, width = features.shape
    count = num_kept(patches, keep)
    device = features.device
    if count == patches:
        return torch.arange(patches, device=device).expand(batch, frames, patches)
    if rule == "uniform":
        return torch.from_numpy(uniform_grid(patches, count)).to(device).expand(batch, frames, count)
    if rule == "random":
        draw = torch.rand(batch, frames, patches, generator=torch.Generator().manual_seed(seed)).to(device)
        return draw.topk(count, dim=-1).indices.sort(dim=-1).values
    vectors = match_width(torch.stack(list(queries)).float(), width).repeat_interleave(frames, dim=0)  # [B·F, C]
    relevance, similarity = score_tokens(features.flatten(0, 1), vectors)  # [B·F, P], [B·F, P, P]
    if rule == "relevance":
        picked = relevance.topk(count, dim=-1).indices.sort(dim=-1).values
    elif rule in ("rediprune", "diversity"):
        picked = max_min_select(similarity, relevance, count, ALPHA if rule == "rediprune" else 0.0)
    else:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")
    return picked.view(batch, frames, count)


def prompt_ids(question: str, frames: int) -> list[int]:
    """The prompt of the checkpoint's chat template, with one placeholder for each frame."""
    return [BOS, *encode("USER: " + "<image>\n" * frames + question + " ASSISTANT:")]


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    questions: Sequence[str],
    keep: float = 1.0,
    rule: str = "rediprune",
    seed: int = 0,
) -> list[str]:
    """Greedy answers to one question each about B pictures or clips.

    Args:
        model: the checkpoint.
        features: [B, F, P, C] from `vision_features`.
        questions: B of them.
        keep: the keep ratio; 1 is the unpruned model.
        rule: one of RULES.
        seed: of the random rule.
    """
    embed = model.get_input_embeddings()
    batch, frames = features.shape[:2]
    prompts = [prompt_ids(question, frames) for question in questions]
    device = features.device
    tails = [torch.tensor(query_ids(ids, {IMAGE}), device=device) for ids in prompts]
    queries = [pool_query(embed(tail)) for tail in tails] if rule in RULES[:3] and keep < 1 else [tails[0]] * batch
    picked = select(rule, features, queries, keep, seed)  # [B, F, K]
    kept = features.gather(2, picked[..., None].expand(-1, -1, -1, features.shape[-1]))
    visual = model.model.multi_modal_projector(kept)  # [B, F, K, D]
    spliced = []
    for ids, frame_embeds in zip(prompts, visual, strict=True):
        parts, rest, frame = [], ids, 0
        while IMAGE in rest:
            at = rest.index(IMAGE)
            parts += [embed(torch.tensor(rest[:at], dtype=torch.long, device=device)), frame_embeds[frame]]
            rest, frame = rest[at + 1 :], frame + 1
        spliced.append(torch.cat([*parts, embed(torch.tensor(rest, device=device))]))
    longest = max(len(s) for s in spliced)
    inputs = torch.zeros(batch, longest, visual.shape[-1], device=device, dtype=visual.dtype)
    mask = torch.zeros(batch, longest, dtype=torch.long, device=device)
    for i, embeds in enumerate(spliced):  # left-padded: every answer starts at the same place
        inputs[i, longest - len(embeds) :] = embeds
        mask[i, longest - len(embeds) :] = 1
    ids = model.generate(  # pyright: ignore[reportAttributeAccessIssue]  # its stubs want a quantizer
        inputs_embeds=inputs,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return [tokenizer().decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]


@torch.no_grad()
def features_of(model: LlavaForConditionalGeneration, test: Sequence[Sample]) -> Tensor:
    """Features [B, F, P, C] of samples that are all pictures or all clips; each is encoded once."""
    device = next(model.parameters()).device
    known: dict[int, Tensor] = {}
    for sample in test:
        if id(sample.subject) not in known:
            known[id(sample.subject)] = vision_features(model, torch.tensor(sample.pictures(), device=device))
    return torch.stack([known[id(sample.subject)] for sample in test])


def evaluate(
    model: LlavaForConditionalGeneration,
    test: Sequence[Sample],
    keeps: Sequence[float] = KEEPS,
    rules: Sequence[str] = RULES,
    batch: int = 128,
) -> dict[str, dict[str, float]]:
    """Accuracy of each rule at each keep: {"rule@keep": {"all": …, kind: …}}.

    `test` is all pictures or all clips. Keep 1 is the same for every rule, and run once, as "unpruned".
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for start in range(0, len(test), batch):
        part = test[start : start + batch]
        features = features_of(model, part)
        for rule in rules:
            for keep in keeps:
                if keep == 1 and rule != rules[0]:
                    continue
                said = answers(model, features, [s.question for s in part], keep, rule, seed=start)
                scores = right.setdefault("unpruned" if keep == 1 else f"{rule}@{keep:g}", {})
                for sample, answer in zip(part, said, strict=True):
                    for key in ("all", sample.kind):
                        scores.setdefault(key, []).append(answer == sample.answer)
    return {name: {kind: float(np.mean(v)) for kind, v in scores.items()} for name, scores in right.items()}


def test_sets(images: int, clips: int, seed: int = 0) -> dict[str, list[Sample]]:
    """The held-out sets: pictures and clips, of seen and of unseen combinations of shape and colour."""
    return {
        "images": list(samples("test", seed, images, 0)),
        "images, unseen pairs": list(samples("unseen", seed, images // 2, 0)),
        "clips": list(samples("test", seed, 0, clips)),
        "clips, unseen pairs": list(samples("unseen", seed, 0, clips // 2)),
    }


def report(
    model: LlavaForConditionalGeneration,
    images: int,
    clips: int,
    keeps: Sequence[float] = KEEPS,
    rules: Sequence[str] = RULES,
) -> dict[str, dict[str, dict[str, float]]]:
    """Every test set under every rule, with the majority baseline beside it."""
    train = list(samples("train", 0, 500, 500))
    table = {}
    for name, test in test_sets(images, clips).items():
        table[name] = evaluate(model, test, keeps, rules, batch=64 if name.startswith("images") else 8)
        table[name]["majority answer"] = {"all": majority(test, train), "questions": float(len(test))}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--images", type=int, default=500, help="pictures in the test set, four questions each")
    parser.add_argument("--clips", type=int, default=200, help="clips in the test set, four questions each")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="add the table to this JSON")
    args = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    torch.nn.Module.to(model, args.device)
    table = report(model, args.images, args.clips, args.keep, args.rules)
    print_table(table)
    if args.out:
        if args.out.exists():  # rows of an earlier call, of other rules, are kept
            known = json.loads(args.out.read_text())
            table = {name: known.get(name, {}) | rows for name, rows in table.items()}
        args.out.write_text(json.dumps(table, indent=1) + "\n")


def print_table(table: dict[str, dict[str, dict[str, float]]]) -> None:
    for name, rows in table.items():
        print(f"\n{name}")
        for rule, scores in rows.items():
            kinds = "  ".join(f"{k} {100 * v:.1f}" for k, v in scores.items() if k not in ("all", "questions"))
            print(f"  {rule:18s} {100 * scores['all']:5.1f} %   {kinds}")


if __name__ == "__main__":
    main()
