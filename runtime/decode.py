"""Prefill and decoding: a prompt's embeddings in, token ids out."""

from collections.abc import Generator

import numpy as np

from .prompt_encoder import PromptEmbeds
from .sampling import Sampling
from .stage_sessions import RequestSessions
from .timing import StageClock


def decode(
    sessions: RequestSessions, prompt: PromptEmbeds, max_new_tokens: int, sampling: Sampling, clock: StageClock
) -> Generator[int, None, None]:
    """Token after token, each chosen from the logits behind all before it.

    Args:
        sessions: of the stages.
        prompt: what is prefilled.
        max_new_tokens: the KV cache has room for so many; whoever reads stops there.
        sampling: how a token is chosen.
        clock: adds up the prefill.

    Yields:
        The generated ids.
    """
    random = np.random.default_rng(sampling.seed)
    embeds, seen, length = prompt.embeds, list(prompt.ids), prompt.unpruned_length
    positions, slot, deepstack = prompt.positions, embeds.shape[0], prompt.deepstack
    begin = len(seen)
    del prompt  # with its features
    decoding = sessions.language.start(embeds.shape[0] + max_new_tokens)
    with clock("prefill"):
        spans = None if positions is None else positions.prompt
        logits = decoding.step(embeds.reshape(1, *embeds.shape), spans, deepstack)  # [vocabulary]
    del embeds, deepstack
    while True:
        generated = len(seen) - begin
        token = sampling.choose(logits, seen, random, generated, length, generated == max_new_tokens - 1)
        yield token
        seen.append(token)
        embedded = sessions.stage("embed").run({"input_ids": np.array([[token]])})["embeds"]  # [1, 1, width]
        logits = decoding.step(embedded, None if positions is None else positions.span(slot, 1))
        slot += 1
