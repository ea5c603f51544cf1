"""Train the demo checkpoint from scratch: `python -m rediprune.export.demo.train`.

Three stages. `tower`: the vision tower alone learns to name what each patch shows; LLaVA-type models start
from a pretrained tower too. `whole`: tower, projector and decoder learn to answer, seeing every visual token,
as LLaVA-type models do. `pruned` (optional): a short further training in which each step sees what the method
keeps at a random keep ratio. Seeds are fixed, data are drawn by worker processes in a fixed order, and
`state.pt` holds all that is needed to go on after an interruption.
"""

import argparse
import copy
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from ...calibration.tasks.clips import FRAMES
from .evaluate_eager import print_table, report, vision_features
from .model import VOCABULARY, new_model, save
from .packed_answers import answer_logits, right_answers, select_marked, take
from .packing import KINDS, NOTHING, ROWS, Chunk, Chunks, chunk
from .patch_classifier import PatchClassifier
from .recipe import Recipe

_TRAINING_KEEPS = (1.0, 1.0, 0.5, 0.25, 0.15, 0.15, 0.1)  # drawn from in the pruned stage


class Trainer:
    """Model, optimiser and data of one run, with the history of its curves."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, workers: int, compiled: bool) -> None:
        self.recipe, self.folder, self.device, self.workers = recipe, folder, torch.device(device), workers
        folder.mkdir(parents=True, exist_ok=True)
        self.model = new_model(recipe.seed)
        if recipe.start:
            self.model = LlavaForConditionalGeneration.from_pretrained(recipe.start, dtype=torch.float32)
        self.model.model.vision_tower.requires_grad_(not recipe.frozen)
        nn.Module.to(self.model, self.device)
        self.average = copy.deepcopy(self.model).eval()
        self.names = PatchClassifier().to(self.device)
        if compiled:
            for layer in [
                *self.model.model.vision_tower.encoder.layers,
                *self.model.model.language_model.layers,
            ]:
                layer.compile()
        parameters = [*self.model.parameters(), *self.names.parameters()]
        decayed = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.rate,
            betas=(0.9, 0.98),
            fused=self.device.type == "cuda",
        )
        self.step = 0
        self.history: list[dict] = []
        self.validation: dict[str, Tensor] | None = None
        if (folder / "state.pt").exists():
            self.load()

    # ---- state

    def load(self) -> None:
        state: dict[str, Any] = torch.load(self.folder / "state.pt", map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.folder}/state.pt is of another recipe; delete it or choose another --folder")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.names.load_state_dict(state["names"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = state["step"], state["history"]
        print(f"going on from step {self.step}", flush=True)

    def save_state(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "names": self.names.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "history": self.history,
        }
        part = self.folder / "state.part"
        torch.save(state, part)
        os.replace(part, self.folder / "state.pt")
        (self.folder / "curves.json").write_text(
            json.dumps({"recipe": asdict(self.recipe), "history": self.history}, indent=0) + "\n"
        )

    # ---- data

    def to_device(self, drawn: Chunk) -> dict[str, Tensor]:
        return {name: torch.as_tensor(array).to(self.device, non_blocking=True) for name, array in drawn.items()}

    def batches(self):
        """Step after step: ROWS parts, each a chunk with the number of the row to train on."""
        recipe, delay = self.recipe, self.recipe.delay
        first = max(0, self.step - (ROWS - 1) * delay)
        data = Chunks(
            first,
            recipe.total,
            seed=recipe.seed,
            images=recipe.images,
            clips=recipe.clips,
            easy=recipe.easy,
            draw_pictures=not recipe.blind,
            focus=tuple(filter(None, recipe.focus.split(","))),
        )
        loader = DataLoader(
            data,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=8 if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        pool: dict[int, dict[str, Tensor]] = {}
        for number, drawn in enumerate(loader, start=first):
            pool[number] = self.to_device(drawn)
            if recipe.frozen:
                torch.manual_seed(recipe.seed * 1_000_003 + number)
                seen = self.features([(pool[number], 0)])
                pool[number] = {name: array for name, array in pool[number].items() if name.endswith("rows")}
                pool[number] |= {medium + "_features": seen[medium] for medium in seen}
            pool.pop(number - (ROWS - 1) * delay - 1, None)
            if number >= self.step:
                # Row r comes r · delay steps after the picture was new; at first all rows come at once.
                yield [(pool[number - r * delay if number >= r * delay else number], r) for r in range(ROWS)]

    # ---- one step

    def pictures(self, parts: list[tuple[dict[str, Tensor], int]]) -> Tensor:
        """All pictures and frames of a step, in that order: uint8 [N, H, W, 3]."""
        stills = torch.cat([part["images"] for part, _ in parts])
        frames = torch.cat([part["clips"] for part, _ in parts]).flatten(0, 1)
        return torch.cat([stills, frames])

    def disturbed(self, pictures: Tensor) -> Tensor:
        """A little gain and noise, as of cameras and codecs: float32 [N, H, W, 3] in 0 … 255."""
        gain = 1 + 0.06 * (torch.rand(len(pictures), 1, 1, 1, device=self.device) - 0.5)
        level = 6 * torch.rand(len(pictures), 1, 1, 1, device=self.device)
        return (pictures * gain + level * torch.randn(pictures.shape, device=self.device)).clamp(0, 255)

    def features(self, parts: list[tuple[dict[str, Tensor], int]]) -> dict[str, Tensor]:
        """What the tower makes of a step's pictures and clips: [B, F, P, C] by medium."""
        if all("image_features" in part for part, _ in parts):
            return {m: torch.cat([part[m + "_features"] for part, _ in parts]) for m in ("image", "clip")}
        with torch.set_grad_enabled(not self.recipe.frozen):
            encoded = vision_features(self.model, self.disturbed(self.pictures(parts)))  # [N, P, C]
        stills = sum(len(part["images"]) for part, _ in parts)
        return {"image": encoded[:stills, None], "clip": encoded[stills:].view(-1, FRAMES, *encoded.shape[1:])}

    def tower_loss(self, parts: list[tuple[dict[str, Tensor], int]]) -> tuple[Tensor, dict[str, Tensor]]:
        labels = torch.cat(
            [
                *(part["image_labels"] for part, _ in parts),
                *(part["clip_labels"].flatten(0, 1) for part, _ in parts),
            ]
        ).long()
        features = vision_features(self.model, self.disturbed(self.pictures(parts)))
        loss, right = self.names.loss(features, labels)
        return loss, {"patch loss": loss.detach(), "patches right": right}

    def answer_loss(self, parts: list[tuple[dict[str, Tensor], int]], keep: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the tokens of answers (of clips counted half), and the answers right by medium."""
        total = torch.zeros((), device=self.device)
        stats = {}
        features = {} if self.recipe.blind else self.features(parts)
        for medium, share in (("image", 1.0), ("clip", 0.5)):
            rows = torch.cat([part[medium + "_rows"][:, r] for part, r in parts]).long()  # [B, 6, T]
            visual = None
            if not self.recipe.blind:
                seen = features[medium]
                if keep < 1:
                    seen = take(seen, select_marked(self.model, seen.detach(), rows, keep))
                visual = self.model.model.multi_modal_projector(seen)
            logits = answer_logits(self.model, visual, rows)
            loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 3].flatten(), ignore_index=NOTHING)
            total = total + share * loss
            starts, right = right_answers(logits, rows)
            stats[f"{medium} loss"] = loss.detach()
            stats[f"{medium} right"] = (starts & right).sum() / starts.sum()
        return total, stats

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def train_step(self, parts: list[tuple[dict[str, Tensor], int]]) -> dict:
        recipe = self.recipe
        stage = recipe.stage(self.step)
        keep = 1.0
        if stage == "pruned":
            keep = _TRAINING_KEEPS[int(np.random.default_rng([recipe.seed, self.step]).integers(len(_TRAINING_KEEPS)))]
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        with self.autocast():
            loss, stats = self.tower_loss(parts) if stage == "tower" else self.answer_loss(parts, keep)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        weight = 1 - min(recipe.average, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, weight)
        self.step += 1
        return stats

    @torch.no_grad()
    def validate(self, keep: float = 1.0, rule: str = "rediprune") -> dict[str, float]:
        """Teacher-forced accuracy of the averaged weights on held-out pictures and clips, per kind."""
        if self.validation is None:
            self.validation = self.to_device(
                chunk(0, self.recipe.seed, 96, 48, split="val", draw_pictures=not self.recipe.blind)
            )
        scores = {}
        for medium in ("image", "clip"):
            packed = self.validation[medium + "_rows"][:, 1].long()
            visual = None
            if not self.recipe.blind:
                pictures = self.validation[medium + "s"]
                features = vision_features(self.average, pictures.view(-1, *pictures.shape[-3:]))
                features = features.view(len(pictures), -1, *features.shape[1:])
                if keep < 1:
                    features = take(features, select_marked(self.average, features, packed, keep, rule))
                visual = self.average.model.multi_modal_projector(features)
            starts, right = right_answers(answer_logits(self.average, visual, packed), packed)
            kind = packed[:, 4][starts]
            good = right[starts].float()
            scores |= {KINDS[k]: float(good[kind == k].mean()) for k in kind.unique().tolist()}
            scores[medium] = float(good[kind != KINDS.index("describe")].mean())
        return scores

    def progress(self, kept: list[dict[str, Tensor]], seconds: float) -> None:
        """One line of progress, kept for the curves."""
        line: dict = {"step": self.step}
        line |= {name: float(torch.stack([k[name] for k in kept if name in k]).mean()) for name in kept[-1]}
        if self.recipe.stage(self.step - 1) != "tower":
            line["val"] = self.validate()
        self.history.append(line)
        shown = "  ".join(f"{k} {v:.3f}" for k, v in line.items() if isinstance(v, float))
        kinds = " ".join(f"{k} {v:.2f}" for k, v in line.get("val", {}).items())
        print(
            f"{self.step}/{self.recipe.total}  {shown}  {len(kept) / seconds:.1f} steps/s | {kinds}",
            flush=True,
        )

    def end_stage(self) -> None:
        """Keep the whole stage's checkpoint, and say how it stands pruned."""
        stage = self.recipe.stage(self.step - 1)
        if stage != "tower" and not self.recipe.blind:
            save(self.average, self.folder / stage)
            for rule in ("rediprune", "diversity", "random", "uniform"):
                scores = self.validate(0.15, rule)
                print(
                    f"{stage}, {rule} at 0.15: " + " ".join(f"{k} {v:.2f}" for k, v in scores.items()),
                    flush=True,
                )
        self.save_state()

    def run(self, minutes: float, every: int) -> None:
        """Train to the end of the recipe or for `minutes`; report `every` steps, save every five reports."""
        started = last = time.perf_counter()
        recipe = self.recipe
        kept: list[dict[str, Tensor]] = []
        try:
            for parts in self.batches():
                kept.append(self.train_step(parts))
                ended = self.step == recipe.total or recipe.stage(self.step) != recipe.stage(self.step - 1)
                if self.step % every == 0 or ended:
                    now = time.perf_counter()
                    self.progress(kept, now - last)
                    last, kept = now, []
                if self.step % (5 * every) == 0:
                    self.save_state()
                if ended:
                    self.end_stage()
                if time.perf_counter() - started > 60 * minutes:
                    break
        except KeyboardInterrupt:
            print("interrupted: run the same command again to go on")
        self.save_state()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-training"), help="state, curves and results go here")
    parser.add_argument("--checkpoint", type=Path, default=None, help="where the finished checkpoint goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time, with the state saved")
    parser.add_argument("--every", type=int, default=200, help="steps between two lines of progress")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers (GPU)")
    parser.add_argument("--test", type=int, nargs=2, default=None, metavar=("IMAGES", "CLIPS"), help="evaluate after")
    for name, default in asdict(Recipe()).items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.config.recompile_limit = 32
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(f"{FRAMES} frames a clip, vocabulary {VOCABULARY}, {asdict(recipe)}", flush=True)
    trainer = Trainer(recipe, args.folder, args.device, args.workers, args.compile)
    trainer.run(args.minutes, args.every)
    if args.checkpoint and trainer.step >= recipe.total:
        save(trainer.average, args.checkpoint)
    if args.test:
        table = report(trainer.average, *args.test)
        print_table(table)
        (args.folder / "table.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
