"""How time grows: with frames, with kept tokens, with the prompt's length."""

from typing import Any

from ...graphs.selection.counts import num_kept
from ...runtime.bundle import Bundle
from ...runtime.media.processor import Processor
from .bench_settings import BenchSettings
from .contenders import Contender, take_turn

FRAMES = (64, 32, 16, 8, 4, 2, 1)
KEEPS = (1.0, 0.75, 0.5, 0.25, 0.15, 0.1, 0.05)
PROMPTS = (2048, 1024, 512, 256, 128, 64, 16)  # tokens of the question, roughly
_REST = 64  # more than chat template and question take

Curve = dict[str, dict[str, float]]  # size → seconds by stage


def scaling_sweep(
    contender: Contender,
    bundle: Bundle,
    geometry: tuple[int, int],
    request: dict[str, Any],
    settings: BenchSettings,
) -> dict[str, Curve | list[str]]:
    """Seconds by stage over each of the three, each measured once in a process that was warmed with the smallest.

    Args:
        contender: who is measured.
        bundle: one of its checkpoint.
        geometry: frames or tiles of the request, and visual tokens of each.
        request: as `turn.take_turn` has it, without a keep ratio.
        settings: of the bench; `limit` holds for each of the three sweeps.

    Returns:
        frames, keep and prompt, and `left_out`: sizes that the model has no positions for.

    Raises:
        TurnError: a sweep failed, or took too long.
    """
    base = request | {"keep": 0.15, "new_tokens": 1}
    medium = (request["images"] or request["videos"])[0]
    (count, patches), positions = geometry, bundle.manifest.decoder.max_positions
    each = len(Processor.load(bundle.path("processor")).encode("word " * 100)) / 100  # tokens

    def frames(number: int) -> dict[str, Any]:
        if settings.kind == "video":
            return base | {"frames": number}
        return base | {"images": [medium] * number}

    asked = {
        "frames": {n: (frames(n), n * num_kept(patches, 0.15)) for n in FRAMES},
        "keep": {keep: (base | {"keep": keep}, count * num_kept(patches, keep)) for keep in KEEPS},
        "prompt": {
            n: (base | {"question": "word " * round(n / each)}, n + count * num_kept(patches, 0.15)) for n in PROMPTS
        },
    }
    found: dict[str, Any] = {"left_out": []}
    for name, sizes in asked.items():
        fits = {size: one for size, (one, tokens) in sizes.items() if tokens + _REST <= positions}
        found["left_out"] += [f"{name} {size:g}" for size in sizes if size not in fits]
        turn = take_turn(contender, list(fits.values()), 1, settings.limit, warm=False)
        found[name] = {f"{size:g}": taken[0] for size, taken in zip(fits, turn["answers"], strict=True)}
    return found
