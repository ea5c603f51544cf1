"""llama.cpp on the decoder alone: a text of as many tokens as the prompt has positions; in an environment of its own.

    python -m rediprune.export.bench.peers.llama_peer CHECKPOINT FOLDER PRECISION    makes the GGUF file that it reads

Every matrix has the precision asked for, output layer and embeddings too (`llama-quantize --pure`), as ours have.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....runtime.errors import RedipruneError

_FILE = "decoder.gguf"


def load(folder: str, threads: int) -> Callable[[dict[str, Any]], dict[str, float]]:
    """See `turn.take_turn`."""
    import llama_cpp as llama
    import numpy as np

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    path = str(Path(folder) / _FILE).encode()
    model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
    if not model:
        raise RedipruneError(f"llama.cpp cannot read {folder}")
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    context, room = None, 0

    def step(tokens: list[int]) -> int:
        array = (llama.llama_token * len(tokens))(*tokens)  # the batch points into it
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))):
            raise RedipruneError(f"llama.cpp does not take {len(tokens)} tokens")
        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (words,)).argmax())

    def ask(request: dict[str, Any]) -> dict[str, float]:
        nonlocal context, room
        positions, new = request["positions"], request["new_tokens"]
        if positions + new > room:
            if context:
                llama.llama_free(context)
            room = positions + new
            settings = llama.llama_context_default_params()
            settings.n_ctx = settings.n_batch = room
            settings.n_threads = settings.n_threads_batch = threads
            context = llama.llama_init_from_model(model, settings)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        begin = time.perf_counter()
        token = step([at % words for at in range(positions)])
        first = time.perf_counter()
        for _ in range(new - 1):
            token = step([token])
        end = time.perf_counter()
        return {
            "prefill": first - begin,
            "decode_token": (end - first) / max(new - 1, 1),
            "total": end - begin,
            "tokens": new,
        }

    ask.__dict__["keep"] = quiet  # ctypes wants the callback alive
    return ask


def convert(checkpoint: Path, folder: Path, precision: str) -> None:
    """Write the decoder of a checkpoint as GGUF, without a vocabulary.

    Args:
        folder: to make. precision: "f32", "q8_0" or "q4_0".

    Raises:
        RedipruneError: a decoder that is neither Llama's nor Qwen2's, or its positions are scaled.
    """
    import gguf
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    family = config["model_type"]
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    if family not in ("llama", "qwen2") or rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise RedipruneError(f"only decoders of Llama and Qwen2 with plain rotary positions are written, not {family}")
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    key_heads = config.get("num_key_value_heads", heads)
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / _FILE, family, use_temp_file=True)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    known = gguf.get_tensor_name_map({"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[family], layers)
    kind = getattr(gguf.GGMLQuantizationType, precision.upper())
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            for name in sorted(tensors.keys()):
                if "language_model" not in name and "lm_head" not in name:
                    continue
                plain = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name).replace("model.lm_", "lm_")
                values = tensors.get_tensor(name).float().numpy()
                if family == "llama" and (found := re.search(r"\.([qk])_proj\.weight$", plain)):
                    values = _interleaved(values, heads if found[1] == "q" else key_heads)
                named = known.get_name(plain, (".weight", ".bias"))
                if values.ndim == 2:
                    writer.add_tensor(named, gguf.quantize(values, kind), raw_dtype=kind)
                else:
                    writer.add_tensor(named, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows [out, in] so that the two halves of a rotary pair lie side by side, as llama.cpp rotates Llama's."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
