"""transformers' own ONNX export (`transformers.exporters`) on its runner, ONNX Runtime; float32, unpruned.

    python -m rediprune.export.bench.peers.exported_peer CHECKPOINT FOLDER fp32    makes what it reads

transformers 5.23 has no `generate` over exported graphs, and `OnnxExporter.export_for_generation` leaves the tower and the
projector of a LLaVA out: its `generate` encodes images before the prefill that is captured (`mm_encoder_outputs`), and
components that are not called then are skipped (`exporters/utils.py`, `decompose_multimodal`). What it does give holds
the decoder twice, for prefill and for decoding. So each module is exported by itself through `OnnxExporter.export`, one
graph of the decoder for both, and the loop is here.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ....runtime.errors import RedipruneError
from ....runtime.media.processor import Processor, load_image
from ....runtime.prompt import prompt_ids
from .answering import AnswerTimer, splice


def load(folder: str, threads: int) -> Callable[[dict[str, Any]], dict[str, float]]:
    """See `turn.take_turn`."""
    import onnxruntime
    from transformers import AutoConfig, DynamicCache
    from transformers.exporters.base import ExportedModel

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    embed, vision, project, language, head = (
        ExportedModel.from_pretrained(Path(folder) / name, device="cpu", session_options=options)
        for name in ("embed", "vision", "project", "language", "head")
    )
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    processor = Processor.load(folder)
    placeholder, text = config.image_token_id, config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    empty = torch.empty(1, text.num_key_value_heads, 0, width)

    @torch.inference_mode()
    def ask(request: dict[str, Any]) -> dict[str, float]:
        if request["videos"]:
            raise RedipruneError("it is asked about images only")
        timer = AnswerTimer()
        with timer("preprocess"):
            images = [load_image(image) for image in request["images"]]
            ids = prompt_ids(processor, request["question"], len(images), 0)
            pixels = [torch.from_numpy(processor.pixel_values([image], False)) for image in images]
        with timer("embed"):
            texts = embed(input=torch.tensor([ids]))  # [1, S, D]
        visual = []
        for values in pixels:
            with timer("vision"):
                states = vision(pixel_values=values).hidden_states[config.vision_feature_layer]  # [1, P or P + 1, C]
                features = states[:, 1:] if config.vision_feature_select_strategy == "default" else states
            with timer("project"):
                visual.append(project(image_features=features).flatten(0, 1))
        with timer("embed"):
            embeds = splice(ids, texts[0], visual, {placeholder})
        cache: Any = DynamicCache(config=text)
        for layer in range(text.num_hidden_layers):  # the graph takes no cache that holds nothing, but empty tensors
            cache.update(empty, empty, layer)
        length = 0

        def step(embeds: torch.Tensor) -> int:
            nonlocal cache, length
            positions = torch.arange(length, length + embeds.shape[1])[None]
            answer = language(inputs_embeds=embeds, position_ids=positions, past_key_values=cache)
            cache, length = answer.past_key_values, length + embeds.shape[1]
            return int(head(input=answer.last_hidden_state[:, -1:])[0, -1].argmax())

        with timer("prefill"):
            token = step(embeds)
        timer.first_token()
        for _ in range(request["new_tokens"] - 1):
            token = step(embed(input=torch.tensor([[token]])))
        return timer.finish(request["new_tokens"])

    return ask


def convert(checkpoint: Path, folder: Path, precision: str) -> None:
    """Export every module of a LLaVA, each into a folder of its own.

    Args:
        folder: to make. precision: "fp32".

    Raises:
        RedipruneError: another family.
    """
    from transformers import AutoModelForImageTextToText, DynamicCache
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    from ...exporter import processor_files

    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False)
    model = model.eval().requires_grad_(False)
    config = model.config
    if config.model_type != "llava":
        raise RedipruneError(f"only LLaVA is put together here, not {config.model_type}")
    inner, width, side = model.model, config.text_config.hidden_size, config.vision_config.image_size
    cache = DynamicCache(config=config.text_config)
    inner.language_model(inputs_embeds=torch.randn(1, 5, width), past_key_values=cache)
    asked = {
        "embed": (model.get_input_embeddings(), {"input": torch.arange(7)[None]}),
        "vision": (inner.vision_tower, {"pixel_values": torch.randn(1, 3, side, side), "output_hidden_states": True}),
        "project": (
            inner.multi_modal_projector,
            {"image_features": torch.randn(1, config.image_seq_length, config.vision_config.hidden_size)},
        ),
        "language": (
            inner.language_model,
            {
                "inputs_embeds": torch.randn(1, 3, width),
                "position_ids": torch.arange(5, 8)[None],
                "past_key_values": cache,
                "use_cache": True,
            },
        ),
        "head": (model.lm_head, {"input": torch.randn(1, 2, width)}),
    }
    for name, (module, inputs) in asked.items():
        OnnxExporter().export(module, inputs, OnnxConfig(dynamic=True, ort_fusions="cpu")).save_pretrained(
            folder / name
        )
    for file in processor_files(checkpoint):
        shutil.copy(file, folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
