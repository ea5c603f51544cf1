"""Time to first token and memory of an eager 7B pipeline on a GPU, with selection by the kernels.

    python -m rediprune.export.bench.gpu.gpu_pipeline --json pipeline-7b.json --markdown pipeline-7b.md

CLIP-L/336 and a 7B Llama in bfloat16 with random weights: times and memory depend on the geometry alone.
Needs a GPU with 20 GiB, torch with CUDA, transformers and cuda-core.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ....graphs.selection.cuda.launcher import GpuUnavailable, load_kernels
from ....graphs.selection.cuda.tensors import select_tokens_cuda
from ....graphs.selection.query_vector import pool_query
from .gpu_report import add_output_options, environment, in_one_line, refuse, table_head, write_report

KEEPS = (1.0, 0.25, 0.15, 0.10)
PROMPT = 40  # text tokens: a system line and a question
WARM_UP, REPEATS = 3, 15


class Llava7B(nn.Module):
    """The stages of LLaVA-1.5-7B; for video, features are pooled 24 × 24 → 12 × 12 as in LLaVA-NeXT-Video."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import (  # pyright: ignore[reportMissingImports]
            CLIPVisionConfig,
            CLIPVisionModel,
            LlamaConfig,
            LlamaForCausalLM,
        )

        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        )
        language = LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
        )
        self.vision = CLIPVisionModel._from_config(vision, dtype=torch.bfloat16)
        self.project = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4096)).bfloat16()
        self.language = LlamaForCausalLM._from_config(language, dtype=torch.bfloat16)

    def encode(self, pixels: Tensor, video: bool) -> Tensor:
        """Features [F, P, C] of pixels [F, 3, 336, 336]."""
        x = self.vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        if not video:
            return x
        grid = x.transpose(1, 2).unflatten(2, (24, 24))
        return nn.functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)

    def select(self, features: Tensor, text: Tensor, keep: float) -> Tensor:
        """The kept tokens [F, K, C] of features [F, P, C]; text [S, D] are the prompt's embeddings."""
        if keep == 1.0:
            return features
        picked = select_tokens_cuda(features, pool_query(text), keep)
        return features.gather(1, picked[:, :, None].expand(-1, -1, features.shape[2]))

    def prefill(self, kept: Tensor, text: Tensor) -> Tensor:
        """The first token's id [1] of kept tokens [F, K, C] before the text's embeddings [S, D]."""
        visual = self.project(kept).flatten(0, 1)
        out = self.language(inputs_embeds=torch.cat([visual, text])[None], use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].argmax(dim=-1, keepdim=True)


def measure(model: Llava7B, frames: int, video: bool, keep: float) -> dict[str, Any]:
    """Time a request whose pixels lie on the GPU.

    Args:
        model: on the GPU.
        frames: F, the number of images or video frames.
        video: whether features are pooled as those of a video.
        keep: the keep ratio.

    Returns:
        Medians in milliseconds (`…_ms`), the peak memory in GiB, and the number of visual tokens.
    """
    random = torch.Generator("cuda").manual_seed(0)
    pixels = torch.randn(frames, 3, 336, 336, device="cuda", generator=random).bfloat16()
    text = model.language.get_input_embeddings()(torch.randint(0, 32000, (PROMPT,), device="cuda"))
    seconds: dict[str, list[float]] = {"first_token": [], "vision": [], "select": [], "language": []}

    def timed(name: str, call: Callable[[], Tensor]) -> Tensor:
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = call()
        torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - start)
        return out

    def first_token() -> Tensor:
        return model.prefill(model.select(model.encode(pixels, video), text, keep), text).cpu()

    first_token()
    kept = torch.empty(0, 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP + REPEATS):
        timed("first_token", first_token)
        features = timed("vision", lambda: model.encode(pixels, video))
        kept = timed("select", lambda x=features: model.select(x, text, keep))
        timed("language", lambda x=kept: model.prefill(x, text).cpu())
    return {
        "keep": keep,
        "visual_tokens": kept.shape[0] * kept.shape[1],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    } | {f"{name}_ms": statistics.median(all_of[WARM_UP:]) * 1e3 for name, all_of in seconds.items()}


def page(result: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    yield f"""# Eager 7B pipeline on a GPU, by keep ratio

{in_one_line(result["machine"])}. Written by
`python -m rediprune.export.bench.gpu.gpu_pipeline`.

CLIP-L/336 (24 layers) and a Llama of 7B geometry (32 layers, 4096 wide) in bfloat16 with **random weights**:
times and memory depend on the geometry alone. Batch 1, {PROMPT} text tokens, selection by the CUDA kernels.
«First token» runs from pixels on the GPU to the token's id on the host, without waits in between; stages
are timed apart, with a wait after each. Medians of {REPEATS}. Weights take {result["weights_gib"]:.2f} GiB;
peak is that of PyTorch's allocator."""
    for name, rows in result["runs"].items():
        yield f"\n## {name}\n"
        yield table_head(
            "keep",
            "visual tokens",
            "first token, ms",
            "vision",
            "select",
            "projector and prefill",
            "peak, GiB",
        )
        for r in rows:
            yield (
                f"| {r['keep']:.2f} | {r['visual_tokens']} | **{r['first_token_ms']:.1f}** "
                f"| {r['vision_ms']:.1f} | {r['select_ms']:.2f} | {r['language_ms']:.1f} "
                f"| {r['peak_gib']:.2f} |"
            )


@torch.inference_mode()
def main() -> int:
    """Measure one image and two videos at every keep ratio; write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_output_options(parser)
    arguments = parser.parse_args()
    try:
        load_kernels()
    except GpuUnavailable as error:
        return refuse(error)
    with torch.device("cuda"):
        model = Llava7B().eval()
    result = {
        "machine": environment("transformers", "cuda-core"),
        "weights_gib": torch.cuda.memory_allocated() / 2**30,
        "runs": {
            "One image, 576 tokens": [measure(model, 1, False, keep) for keep in KEEPS],
            "Video, 8 frames of 144 tokens": [measure(model, 8, True, keep) for keep in KEEPS],
            "Video, 32 frames of 144 tokens": [measure(model, 32, True, keep) for keep in KEEPS],
        },
    }
    write_report(result, page(result), arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
