"""openvino.genai's VLM pipeline, the whole answer in its C++; in an environment of its own (`make bench-peers`).

Of Qwen-VL it prunes visual tokens by a method of its own (`pruning_ratio`, percent dropped); of LLaVA none.

    python -m rediprune.export.bench.peers.genai_peer CHECKPOINT FOLDER PRECISION    makes the OpenVINO IR that it reads

The IR is what `optimum-cli export openvino --weight-format PRECISION` writes, int4 in blocks of 128 as ours is. Three
faults are worked around when converting (optimum-intel 2.2, transformers 5.0, openvino-genai 2026.4):
- optimum-intel caps transformers below 5.6, for Qwen3-VL at 5.0, whose CLIP still has the level `vision_model` that 5.23
  neither has nor writes: without `_RENAMED` the tower would be loaded with random weights and a warning.
- transformers 5 writes the picture's settings into processor_config.json alone, openvino-genai reads
  preprocessor_config.json alone and takes 336 pixels where there is none: the checkpoint's own file is laid beside.
- optimum-intel requires torchvision, whose wheels want a torch built for CUDA: `operator torchvision::nms does not
  exist`. It does without (see the Makefile).
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....runtime.errors import RedipruneError

_RENAMED = {r"vision_tower\.(?!vision_model\.)": "vision_tower.vision_model."}  # pattern → what it becomes
_WEIGHTS = {
    "int8": {"bits": 8, "sym": False},
    "int4": {"bits": 4, "sym": True, "group_size": 128, "ratio": 1.0, "all_layers": True},  # embeddings in int8
}


def load(folder: str, threads: int) -> Callable[[dict[str, Any]], dict[str, float]]:
    """See `turn.take_turn`."""
    import numpy
    import openvino
    import openvino_genai
    from PIL import Image

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # on by default: a question asked again would skip its prefill
    scheduler.max_num_batched_tokens = 1 << 30  # as by default: the prompt in one piece
    pipeline = openvino_genai.VLMPipeline(folder, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)

    class Clock(openvino_genai.StreamerBase):
        """When each token came."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def write(self, token: int | list[int]) -> Any:
            self.times += [time.perf_counter()] * (len(token) if isinstance(token, list) else 1)
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def ask(request: dict[str, Any]) -> dict[str, float]:
        if request["videos"]:
            raise RedipruneError("it is asked about images only")
        clock = Clock()
        config = openvino_genai.GenerationConfig(max_new_tokens=request["new_tokens"], ignore_eos=True, do_sample=False)
        if request["keep"] < 1:
            config.pruning_ratio = round(100 * (1 - request["keep"]))
        begin = time.perf_counter()
        pictures = [
            numpy.asarray(Image.open(image).convert("RGB"))[None] for image in request["images"]
        ]  # [1, H, W, 3]
        opened = time.perf_counter()
        answer = pipeline.generate(
            request["question"],
            images=[openvino.Tensor(picture) for picture in pictures],
            generation_config=config,
            streamer=clock,
        )
        end = time.perf_counter()
        first, last, told = clock.times[0], clock.times[-1], answer.perf_metrics
        vision = told.get_vision_encoding_duration().mean / 1e3  # with resizing and the projector
        embed = told.get_text_embedding_duration().mean / 1e3
        return {
            "preprocess": opened - begin,
            "vision": vision,
            "embed": embed,
            "prefill": first - opened - vision - embed,  # with the chat template, tokenizing and the splice
            "time_to_first_token": first - begin,
            "decode_token": (last - first) / max(len(clock.times) - 1, 1),
            "total": end - begin,
            "positions": told.get_num_input_tokens(),
            "tokens": len(clock.times),
        }

    return ask


def convert(checkpoint: Path, folder: Path, precision: str) -> None:
    """Write a checkpoint as OpenVINO IR.

    Args:
        folder: to make; its weights in floating point lie beside it for a while. precision: "fp32", "int8" or "int4".
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVModelForVisualCausalLM, OVWeightQuantizationConfig

    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        main_export(
            str(checkpoint),
            made,
            task="image-text-to-text",
            ov_config=OVConfig(
                dtype="fp32" if precision == "fp32" else "fp16"
            ),  # what stays unquantised; half the memory
            convert_tokenizer=True,
            local_files_only=True,
            trust_remote_code=False,
            model_loading_kwargs={"key_mapping": _RENAMED},
        )
        if precision in _WEIGHTS:
            config = OVWeightQuantizationConfig(**_WEIGHTS[precision])
            model = OVModelForVisualCausalLM.from_pretrained(made, quantization_config=config, compile=False)
            model.save_pretrained(folder)
        folder.mkdir(exist_ok=True)
        for file in Path(made).iterdir():
            if not (folder / file.name).exists():
                shutil.move(file, folder)
    images = checkpoint / "preprocessor_config.json"
    if images.is_file():
        shutil.copy(images, folder)
    elif (processor := checkpoint / "processor_config.json").is_file():
        settings = json.loads(processor.read_text(encoding="utf-8"))["image_processor"]
        (folder / images.name).write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
