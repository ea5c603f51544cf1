"""The model that lmms-eval asks: a bundle's pipeline, its selection settings exactly as given, its timings in the log."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from rediprune.runtime import GenerateOptions, Pipeline, RedipruneError, SelectOptions
from rediprune.runtime.answer import Answer
from rediprune.runtime.media.video import load_video
from tqdm import tqdm

DEFAULT_TOKENS = 1024  # where a task names no number, as lmms-eval's other models


class Rediprune(lmms):
    """A bundle.

    Args:
        bundle: its folder.
        backend: as `Pipeline.load` takes it.
        keep, alpha, tau, frames, positions, scope, min_per_frame, first_token, frame_tolerance, prune_tiles: as
            `SelectOptions` takes them. `keep` with a point is a ratio, without one a number of tokens ("1" is the ratio:
            lmms-eval's command line makes no difference between 1 and 1.0).
        threads: of every stage.
        batch_size, device, max_batch_size: given by lmms-eval; only a batch size of 1 is taken, and the device is the
            backend's.
    """

    is_simple = False

    def __init__(
        self,
        bundle: str,
        backend: str = "auto",
        threads: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **selection: Any,
    ):
        super().__init__()
        if str(batch_size) != "1":
            raise RedipruneError(f"batch_size must be 1, not {batch_size}: requests are answered one by one")
        if selection.get("keep") == 1:
            selection["keep"] = 1.0
        try:
            self.selection = SelectOptions(**selection)
        except TypeError as error:
            raise RedipruneError(f"model_args: {error}") from error
        self.pipeline = Pipeline.load(bundle, backend, threads=threads)
        self.answers: list[Answer] = []

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request; `--log_samples` keeps what was said, the log what it took."""
        begin, results = time.perf_counter(), []
        self.answers = []
        for request in tqdm(requests, desc="rediprune", disable=self.rank != 0):
            _, doc_to_messages, settings, doc_id, task, split = request.args
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            answer = self._answer(messages, settings)
            counts = TokenCounts(answer.prompt_tokens + answer.kept_tokens, len(answer.token_ids))
            results.append(GenerationResult(answer.text, counts))
        self._log(time.perf_counter() - begin)
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer round by round; each round's text and pictures come from the task, which sees the answers so far."""
        begin, results = time.perf_counter(), []
        self.answers = []
        for request in tqdm(requests, desc="rediprune", disable=self.rank != 0):
            context, settings, doc_to_visual, doc_to_text, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            visuals, rounds, info, number = doc_to_visual(document), [], None, 0
            while True:
                if number:
                    visuals, context, ends, rounds, info = doc_to_text(
                        document, previous_output=rounds, round_idx=number, previous_round_info=info
                    )
                    if ends:
                        break
                rounds = [*rounds, self._answer(_one_turn(context, visuals), settings).text]
                number += 1
            results.append(list(rounds))
        self._log(time.perf_counter() - begin)
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of every continuation the logarithm of its probability, and whether greedy decoding would say it."""
        results = []
        for request in tqdm(requests, desc="rediprune", disable=self.rank != 0):
            context, target, doc_to_visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            continuation = target if isinstance(target, str) else target(document)
            results.append(self._likelihood(_one_turn(context, doc_to_visual(document)), continuation))
        return results

    def _answer(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Answer:
        prompt, images, videos = self._prompt(messages)
        answer = self.pipeline.generate(
            prompt, images, videos, selection=self.selection, generation=_generation(settings)
        )
        for warning in answer.warnings:
            logger.warning(warning)
        self.answers.append(answer)
        return answer

    def _likelihood(self, messages: Sequence[Mapping[str, Any]], continuation: str) -> tuple[float, bool]:
        prompt, images, videos = self._prompt(messages)
        encoded = self.pipeline.prepare(prompt, images, videos, selection=self.selection).prompt
        targets = self.pipeline.processor.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        embeds, positions = np.asarray(encoded.embeds), encoded.positions
        decoding = self.pipeline.stage("language").start(len(embeds) + len(targets))
        logits = decoding.step(embeds[None], None if positions is None else positions.prompt, encoded.deepstack)
        total, greedy = 0.0, True
        for at, target in enumerate(targets):
            exact = logits.astype(np.float64)
            total += float(exact[target] - exact.max() - np.log(np.exp(exact - exact.max()).sum()))
            greedy = greedy and int(exact.argmax()) == target
            if at + 1 < len(targets):
                embedded = self.pipeline.stage("embed").run({"input_ids": np.array([[target]])})["embeds"]
                slot = len(embeds) + at
                logits = decoding.step(embedded, None if positions is None else positions.span(slot, 1))
        return total, greedy

    def _prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
        """A dialogue as a pipeline takes it, its pictures and its clips. A family without videos sees their frames."""
        dialogue, images, videos = [], [], []
        sees_videos = "video" in self.pipeline.bundle.manifest.modalities
        for message in ChatMessages(messages=messages).messages:
            parts: list[dict[str, Any]] = []
            for part in message.content:
                if part.type == "text":
                    parts.append({"type": "text", "text": part.text})
                elif part.type == "image":
                    parts.append({"type": "image"})
                    images.append(part.url)
                elif part.type == "video":
                    if part.start_time is not None or part.end_time is not None:
                        raise RedipruneError(
                            "start_time and end_time of a video are not supported; cut the clip beforehand"
                        )
                    if sees_videos:
                        parts.append({"type": "video"})
                        videos.append(part.url)
                    else:
                        frames = load_video(part.url, self.selection.frames or self.pipeline.processor.frames or 8)
                        parts += [{"type": "image"}] * len(frames)
                        images += frames
                else:
                    raise RedipruneError(
                        f"rediprune sees pictures and clips; it cannot hear a part of type '{part.type}'"
                    )
            dialogue.append({"role": message.role, "content": parts})
        return dialogue, images, videos

    def _log(self, elapsed: float) -> None:
        answers = self.answers
        if not answers:
            return
        generated = sum(len(answer.token_ids) for answer in answers)
        seconds = {
            f"{stage}_seconds": sum(answer.timings[stage] for answer in answers)
            for stage in ("preprocess", "vision", "select", "project", "embed", "prefill", "decode")
        }
        extra: dict[str, Any] = {
            "requests": len(answers),
            "visual_tokens_mean": statistics.fmean(answer.visual_tokens for answer in answers),
            "kept_tokens_mean": statistics.fmean(answer.kept_tokens for answer in answers),
            "time_to_first_token_median": statistics.median(a.timings["time_to_first_token"] for a in answers),
            "peak_memory_gb": max(answer.peak_memory for answer in answers) / 1e9,
        }
        log_metrics(elapsed, generated, generated / elapsed, extra | seconds)


def _one_turn(text: str, visuals: Sequence[Any] | None) -> list[dict[str, Any]]:
    """A user's turn: pictures (PIL) and clips (paths) before the text."""
    parts = [{"type": "video" if isinstance(one, str) else "image", "url": one} for one in visuals or ()]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _generation(settings: Mapping[str, Any]) -> GenerateOptions:
    """A task's generation settings; those that would change an answer and are not built are refused."""
    if (settings.get("num_beams") or 1) != 1:
        raise RedipruneError(f"num_beams must be 1, not {settings['num_beams']}: answers are not searched for in beams")
    greedy = not settings.get("do_sample", False) and not settings.get("temperature")
    until = settings.get("until") or ()
    return GenerateOptions(
        max_new_tokens=int(settings.get("max_new_tokens") or DEFAULT_TOKENS),
        temperature=0.0 if greedy else float(settings.get("temperature") or 1.0),
        top_p=None if greedy else settings.get("top_p"),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
