"""Many requests in one call beside each of them alone: the same bits, wherever their slots stand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rediprune.runtime.backends.batching import SingleDecoding, open_batch
from rediprune.runtime.backends.ort import OrtCpuLanguage, open_language
from rediprune.runtime.backends.ort_batch import OrtBatch
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import RedipruneError

STEPS = 6


@pytest.fixture(scope="module", params=["llava", "llava_siglip", "llava_fp16"])
def language(request: pytest.FixtureRequest, bundle_of: Callable[[str], Path]) -> OrtCpuLanguage:
    return open_language(Bundle.open(bundle_of(request.param)), threads=1)


def prompts(width: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((1, length + STEPS, width)).astype(np.float32) for length in (3, 40, 17)]


def alone(language: OrtCpuLanguage, embeds: np.ndarray) -> list[np.ndarray]:
    """Logits after the prompt and after each further token."""
    decoding = language.start(64)
    length = embeds.shape[1] - STEPS
    logits = [decoding.step(embeds[:, :length])]
    return logits + [decoding.step(embeds[:, at : at + 1]) for at in range(length, length + STEPS)]


def test_rows_are_bit_equal_to_single_runs(language: OrtCpuLanguage) -> None:
    asked = prompts(language.decoder.width)
    expected = [alone(language, embeds) for embeds in asked]
    batch = open_batch(language)
    assert isinstance(batch, OrtBatch) and batch.slots == 0
    batch.resize(3, 64, 0)
    lengths = [embeds.shape[1] - STEPS for embeds in asked]
    for slot, (embeds, length) in enumerate(zip(asked, lengths, strict=True)):
        half = length // 2  # in two chunks
        batch.prefill(slot, embeds[:, :half], 0)
        np.testing.assert_array_equal(batch.prefill(slot, embeds[:, half:length], half), expected[slot][0])
    for step in range(STEPS):
        rows = np.concatenate([e[:, n + step : n + step + 1] for e, n in zip(asked, lengths, strict=True)])
        logits = batch.step(rows, [n + step for n in lengths])
        for slot in range(3):
            np.testing.assert_array_equal(logits[slot], expected[slot][step + 1])


def test_slots_may_be_moved_exchanged_and_resized_between_calls(language: OrtCpuLanguage) -> None:
    asked = prompts(language.decoder.width)
    expected = [alone(language, embeds) for embeds in asked]
    lengths = [embeds.shape[1] - STEPS for embeds in asked]
    batch = OrtBatch(language)
    batch.resize(4, 50, 0)
    for slot, (embeds, length) in enumerate(zip(asked, lengths, strict=True)):
        batch.prefill(slot, embeds[:, :length], 0)
    order = [0, 1, 2]

    def step(number: int, count: int) -> None:
        """One more token for those in front."""
        rows = np.concatenate([asked[at][:, lengths[at] + number : lengths[at] + number + 1] for at in order[:count]])
        logits = batch.step(rows, [lengths[at] + number for at in order[:count]])
        for slot, at in enumerate(order[:count]):
            np.testing.assert_array_equal(logits[slot], expected[at][number + 1])

    step(0, 3)
    batch.swap(0, 2, 50)
    order[0], order[2] = order[2], order[0]
    step(1, 3)
    batch.resize(5, 64, 47)  # longer, and more of them: nothing is bound to what was
    step(2, 3)
    batch.move(2, 4, 50)
    batch.resize(5, 64, 64)
    batch.move(4, 2, 50)
    step(3, 3)
    batch.resize(3, 48, 48)
    step(4, 3)
    step(5, 2)


def test_a_slot_may_be_written_again_from_any_position(language: OrtCpuLanguage) -> None:
    embeds = prompts(language.decoder.width)[1]
    batch = OrtBatch(language)
    batch.resize(1, 64, 0)
    first = batch.prefill(0, embeds[:, :30], 0).copy()
    batch.prefill(0, embeds[:, 10:40], 30)
    np.testing.assert_array_equal(batch.prefill(0, embeds[:, 20:30], 20), first)


def test_what_has_no_room_is_refused(language: OrtCpuLanguage) -> None:
    batch = OrtBatch(language)
    batch.resize(1, 10, 0)
    with pytest.raises(RedipruneError, match="room for 10 positions, 11"):
        batch.prefill(0, np.zeros((1, 11, language.decoder.width), np.float32), 0)


def test_a_session_that_decodes_one_at_a_time(language: OrtCpuLanguage) -> None:
    class Alone:
        start = staticmethod(language.start)

    embeds = prompts(language.decoder.width)[0]
    single = open_batch(Alone())  # pyright: ignore[reportArgumentType]
    assert isinstance(single, SingleDecoding) and single.slots == 1 and not single.rewinds
    for _ in range(2):  # a second request starts anew
        single.resize(1, 64, 0)
        expected = alone(language, embeds)
        np.testing.assert_array_equal(single.prefill(0, embeds[:, :3], 0), expected[0])
        np.testing.assert_array_equal(single.step(embeds[:, 3:4], [3])[0], expected[1])
