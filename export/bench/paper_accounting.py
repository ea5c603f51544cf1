"""The paper's accounting: operations by the published formula and counted exactly, times as the release takes them.

The papers of this field count a decoder's prefill as `T · (4nd² + 2n²d + 2ndm)` (DivPrune's `tflops.py`; n tokens, width d,
feed-forward width m, T layers): a multiply-add is one operation, the feed-forward has two products though Llama's has three,
and tower, projector and selector are left out. The exact count beside it leaves nothing out.

The release times `generate(max_new_tokens=1)` as "prefill", which has tower, selector and projector in it, and the whole
`generate` as "end to end" (`llava_vid.py`). As published its script calls `exit()` within its loop, and so times the first
request alone, warm-up and all; here each is asked once before it counts.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...graphs.selection.counts import num_kept
from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from ...runtime.machine import processes_waiting
from ...runtime.memory import peak_memory
from ...runtime.pipeline import Pipeline

PAPER = "paper"


@dataclass(frozen=True)
class Geometry:
    """What the operations are counted of: a CLIP or SigLIP tower, a projector of two layers, a Llama-like decoder.

    Attributes:
        layers, width, ffn: of the decoder; T, d and m.
        query_width, cache_width: of all heads of the queries, and of the keys.
        vocabulary: rows of the output layer.
        tower_layers, tower_width, tower_ffn: of the tower; the layers that are run.
        tower_tokens: of a picture, the class token included.
        patch_values: of one patch: channels · height · width.
        patches: P, tokens of a frame that are selected from.
    """

    layers: int
    width: int
    ffn: int
    query_width: int
    cache_width: int
    vocabulary: int
    tower_layers: int
    tower_width: int
    tower_ffn: int
    tower_tokens: int
    patch_values: int
    patches: int

    def published(self, tokens: int) -> int:
        """`T · (4nd² + 2n²d + 2ndm)` of a prompt of n tokens."""
        n, d, m = tokens, self.width, self.ffn
        return self.layers * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)

    def prefill(self, tokens: int) -> int:
        """Multiply-adds of a prompt's prefill: projections, attention, the gated feed-forward, the last token's logits."""
        projections = 2 * self.width * (self.query_width + self.cache_width)
        layer = tokens * projections + 2 * tokens * tokens * self.query_width + 3 * tokens * self.width * self.ffn
        return self.layers * layer + self.width * self.vocabulary

    def vision(self, frames: int) -> int:
        """Multiply-adds of the tower over F frames."""
        n, d, m = self.tower_tokens, self.tower_width, self.tower_ffn
        layer = 4 * n * d * d + 2 * n * n * d + 2 * n * d * m
        patched = (self.tower_tokens - 1) * self.patch_values * d
        return frames * (patched + self.tower_layers * layer)

    def project(self, tokens: int) -> int:
        """Multiply-adds of the projector over so many tokens."""
        return tokens * (self.tower_width * self.width + self.width * self.width)

    def select(self, frames: int, kept: int) -> int:
        """Multiply-adds of the selection of K of P tokens in each frame: all cosines, and a row for each pick."""
        p, c = self.patches, self.tower_width
        return frames * (p * p * c + p * c + kept * p)


# LLaVA-NeXT-Video-7B: Vicuna 7B behind CLIP ViT-L/14-336, of which the last layer is not run; 24 × 24 pooled to 12 × 12.
LLAVA_NEXT_VIDEO_7B = Geometry(32, 4096, 11008, 4096, 4096, 32064, 23, 1024, 4096, 577, 588, 144)
_CLAIM = "more than 6 × fewer TFLOPs at 15 % of the tokens, on LLaVA-NeXT-Video-7B"  # the abstract, arXiv 2603.24680


def geometry_of(bundle: Bundle) -> Geometry:
    """The geometry of a bundle's checkpoint.

    Raises:
        RedipruneError: a family that is put together otherwise.
    """
    config: dict[str, Any] = json.loads(bundle.path("processor/config.json").read_text(encoding="utf-8"))
    vision, text, decoder = config["vision_config"], config["text_config"], bundle.manifest.decoder
    if bundle.manifest.family not in ("llava", "llava_next_video") or vision.get("model_type") != "clip_vision_model":
        raise RedipruneError(
            f"the paper's accounting is for LLaVA and LLaVA-NeXT-Video with a CLIP tower, not {bundle.manifest.family_name}"
        )
    layer = config.get("vision_feature_layer", -2)
    patch = vision["patch_size"]
    return Geometry(
        layers=decoder.layers,
        width=decoder.width,
        ffn=text.get("intermediate_size", 11008),  # what transformers leaves out is Llama's own
        query_width=text.get("num_attention_heads", 32) * decoder.head_width,
        cache_width=decoder.kv_heads * decoder.head_width,
        vocabulary=decoder.vocabulary,
        tower_layers=range(vision["num_hidden_layers"] + 1)[layer],
        tower_width=vision["hidden_size"],
        tower_ffn=vision["intermediate_size"],
        tower_tokens=(vision["image_size"] // patch) ** 2 + 1,
        patch_values=3 * patch * patch,
        patches=next(iter(bundle.manifest.modalities.values())).patches,
    )


@dataclass(frozen=True)
class Operations:
    """Multiply-adds of one request."""

    keep: float
    tokens: int
    published: int
    vision: int
    select: int
    project: int
    prefill: int

    @property
    def exact(self) -> int:
        return self.vision + self.select + self.project + self.prefill


def operations(geometry: Geometry, frames: int, text: int, keep: float) -> Operations:
    """Count one request.

    Args:
        geometry: the model's.
        frames: F.
        text: text tokens of the prompt.
        keep: ratio of the tokens kept of each frame.
    """
    kept = num_kept(geometry.patches, keep)
    tokens = text + frames * kept
    return Operations(
        keep,
        tokens,
        geometry.published(tokens),
        geometry.vision(frames),
        geometry.select(frames, kept) if keep < 1 else 0,
        geometry.project(frames * kept),
        geometry.prefill(tokens),
    )


@dataclass(frozen=True)
class Asked:
    """What every keep ratio is asked.

    Attributes:
        question: the question.
        images, videos: what it is about.
        frames: of a video.
        keeps: ratios.
        new_tokens: of a whole answer.
        runs: of each, after one that does not count.
        backend, threads: of the bundle.
    """

    question: str
    images: Sequence[str]
    videos: Sequence[str]
    frames: int
    keeps: Sequence[float]
    new_tokens: int = 16
    runs: int = 5
    backend: str = "auto"
    threads: int = 0


def account(bundle: Bundle, asked: Asked) -> dict[str, Any]:
    """Count and time a bundle as the paper does, and count LLaVA-NeXT-Video-7B for what its abstract claims.

    Returns:
        A document: `rows` for each keep ratio, `claim` for numbers of frames.
    """
    geometry, busy = geometry_of(bundle), processes_waiting()
    pipeline = Pipeline.load(bundle.folder, asked.backend, threads=asked.threads, cache_bytes=0, verify=False)
    frames = asked.frames if asked.videos else len(asked.images)
    rows = []
    for keep in asked.keeps:
        first, whole = [], []
        answer = None
        for _ in range(asked.runs + 1):
            for tokens, taken in ((1, first), (asked.new_tokens, whole)):
                begin = time.perf_counter()
                answer = pipeline.generate(
                    asked.question,
                    list(asked.images),
                    list(asked.videos),
                    frames=asked.frames,
                    keep=keep,
                    max_new_tokens=tokens,
                    temperature=0.0,
                )
                taken.append(time.perf_counter() - begin)
        assert answer is not None
        counted = operations(geometry, frames, answer.prompt_tokens, keep)
        rows.append(
            asdict(counted)
            | {
                "exact": counted.exact,
                "prefill_seconds": _spread(first[1:]),
                "end_to_end_seconds": _spread(whole[1:]),
                "first_request_seconds": first[0],
                "generated": len(answer.token_ids),
                "peak_memory_bytes": peak_memory(),
            }
        )
    return {
        "bundle": bundle.folder.name,
        "family": bundle.manifest.family_name,
        "precision": bundle.manifest.precision,
        "backends": dict(pipeline.backends),
        "runs": asked.runs,
        "frames": frames,
        "geometry": asdict(geometry),
        "rows": rows,
        "claim": claim(),
        "load_before": busy,
    }


def claim(keep: float = 0.15, texts: Sequence[int] = (40, 100)) -> list[dict[str, Any]]:
    """How many times fewer operations LLaVA-NeXT-Video-7B takes, for numbers of frames and text tokens."""
    rows = []
    for frames in (8, 16, 32, 64):
        for text in texts:
            whole, pruned = (operations(LLAVA_NEXT_VIDEO_7B, frames, text, ratio) for ratio in (1.0, keep))
            rows.append(
                {
                    "frames": frames,
                    "text": text,
                    "published": whole.published / 1e12,
                    "published_pruned": pruned.published / 1e12,
                    "published_ratio": whole.published / pruned.published,
                    "decoder_ratio": whole.prefill / pruned.prefill,
                    "all_ratio": whole.exact / pruned.exact,
                    "selector_share": pruned.select / pruned.exact,
                }
            )
    return rows


def _spread(seconds: Sequence[float]) -> list[float]:
    """Median, least and most."""
    return [statistics.median(seconds), min(seconds), max(seconds)]


def accounting_page(document: Mapping[str, Any], command: str, machine: str) -> str:
    """The document as a page in Markdown."""
    rows = [
        f"| {row['keep']:g} | {row['tokens']} | {row['published'] / 1e9:.2f} | {row['exact'] / 1e9:.2f} | "
        f"{row['vision'] / 1e9:.2f} | {row['select'] / 1e9:.3f} | {row['project'] / 1e9:.3f} | {row['prefill'] / 1e9:.2f} | "
        f"{_milliseconds(row['prefill_seconds'])} | {_milliseconds(row['end_to_end_seconds'])} | "
        f"{row['peak_memory_bytes'] / 1e9:.2f} |"
        for row in document["rows"]
    ]
    claims = [
        f"| {row['frames']} | {row['text']} | {row['published']:.2f} | {row['published_pruned']:.2f} | "
        f"{row['published_ratio']:.2f} | {row['decoder_ratio']:.2f} | {row['all_ratio']:.2f} | {row['selector_share']:.2%} |"
        for row in document["claim"]
    ]
    return "\n".join(
        [
            "# The paper's accounting",
            "",
            f"Made by\n\n```\n{command}\n```\n",
            f"{document['bundle']}, {document['family']}, {document['precision']}, {document['frames']} picture{'s or frames' if document['frames'] > 1 else ''}; "
            f"{machine}. Medians of {document['runs']} requests with the fastest and the slowest, after one that does not "
            "count; nothing is cached from one to the next. Load of the machine before (processes wanting a core): "
            f"{document['load_before']:.1f}.",
            "",
            "**Published** is `T · (4nd² + 2n²d + 2ndm)`, the formula of the field: decoder alone, two products in the "
            "feed-forward, a multiply-add as one operation. **Exact** counts what is computed: three products, grouped "
            "queries, the last token's logits, and tower, selector and projector. **Prefill** is what the release calls so: "
            "the time of a whole request for one token, pictures included; **end to end** is that of the whole answer. The "
            "release's script leaves its loop after the first request (`exit()` in `llava_vid.generate_until`), so that its "
            "times are of one request with the warm-up in it, and no answer is scored; here the first does not count.",
            "",
            "| keep | tokens | published, G | exact, G | tower | select | project | decoder | prefill, ms | end to end, ms | "
            "peak memory, GB |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Memory is the process's largest so far, so that it does not fall from row to row.",
            "",
            "## The abstract's claim",
            "",
            f"arXiv 2603.24680 claims {_CLAIM}. For that geometry, in tera-operations, and how many times fewer there are at "
            "15 %:",
            "",
            "| frames | text | published | pruned | published, × | decoder, exact, × | all, exact, × | selector of all |",
            "|---|---|---|---|---|---|---|---|",
            *claims,
            "",
            "The claim holds of the decoder alone from 16 frames on with a short question, from 32 with one of 100 tokens: 144 "
            "tokens a frame become 22. With tower, projector and selector counted it is three to four times, as pruning leaves the tower as it is.",
            "",
        ]
    )


def _milliseconds(spread: Sequence[float]) -> str:
    median, least, most = (1e3 * value for value in spread)
    return f"{median:.0f} ({least:.0f} – {most:.0f})"
