"""The pipeline beside the eager reference, and what it does around the model."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rediprune.export.validate.eager_reference import Request
from rediprune.export.validate.references import reference_for
from rediprune.runtime import GenerateOptions, Pipeline, RedipruneError, SelectOptions
from rediprune.runtime.backends.arrays import Array
from rediprune.runtime.backends.eager_torch import eager_model
from rediprune.runtime.backends.session import Decoding, LanguageSession, open_session
from rediprune.runtime.bundle import Bundle
from rediprune.runtime.errors import AbandonedError
from rediprune.runtime.media.visualize import draw_answer
from rediprune.runtime.pipeline import Answer
from rediprune.runtime.positions import POSITIONS

from .media.test_video import make_video

QUESTION = "What is in this picture?"
EXACT = (
    "llava",
    "llava_siglip",
    pytest.param("llava_qwen3", marks=pytest.mark.slow),
    pytest.param("llava_next", marks=pytest.mark.slow),
    "llava_next_video",
    pytest.param("llava_onevision", marks=pytest.mark.slow),
    "video_llava",
    pytest.param("internvl", marks=pytest.mark.slow),
    "internvl_qwen3",
    pytest.param("smolvlm", marks=pytest.mark.slow),
    pytest.param("qwen2_vl", marks=pytest.mark.slow),
    pytest.param("qwen2_5_vl", marks=pytest.mark.slow),
    "qwen3_vl",
)
KEEPS = (1.0, 0.5, 0.15, 1)
TOKENS = 10


@pytest.fixture(scope="module")
def pipeline_of(bundle_of: Callable[[str], Path]) -> Callable[[str], Pipeline]:
    loaded: dict[str, Pipeline] = {}

    def load(name: str) -> Pipeline:
        if name not in loaded:
            loaded[name] = Pipeline.load(bundle_of(name))
        return loaded[name]

    return load


def media_of(pipeline: Pipeline, photo: Path, cat: Path, clip: Path) -> list[tuple[str, list[Path], list[Path]]]:
    cases = [(QUESTION, [], []), (QUESTION, [photo], []), ("Compare <image> with <image>, please.", [photo, cat], [])]
    if "video" in pipeline.bundle.manifest.modalities:
        cases += [(QUESTION, [], [clip]), ("First <video> and then <image>?", [cat], [clip])]
    return cases


@pytest.mark.parametrize("name", EXACT)
def test_ids_and_kept_sets_equal_eager(
    name: str, pipeline_of: Callable[[str], Pipeline], photo: Path, cat: Path, clip: Path
) -> None:
    """Token for token what transformers gives: unpruned through its own `generate`, pruned through `select_tokens`."""
    pipeline = pipeline_of(name)
    reference = reference_for(eager_model(pipeline.bundle), pipeline.processor)
    tiled = pipeline.bundle.manifest.modalities["image"].tiled
    answers = set()
    for (question, images, videos), keep, tiles, positions in product(
        media_of(pipeline, photo, cat, clip), KEEPS, (False, True) if tiled else (False,), POSITIONS
    ):
        own = pipeline.bundle.manifest.defaults.positions  # the only ones of some families
        if positions != own and (pipeline.bundle.manifest.position_axes > 1 or not (images or videos)):
            continue
        if tiles and pipeline.processor.most_tiles and len(images) == 1:
            continue  # of a large picture's tiles, which are scaled down, none are dropped
        options = {"keep": keep, "frames": 3, "max_new_tokens": TOKENS, "prune_tiles": tiles, "positions": positions}
        expected = reference.answer(Request(question, images, videos, **options))
        answer = pipeline.generate(question, images, videos, temperature=0.0, **options)
        case = (question, keep, tiles, positions)
        assert answer.token_ids == expected.token_ids, case
        for ours, theirs in zip(answer.kept, expected.kept, strict=bool(expected.kept)):
            assert np.array_equal(ours, theirs), case
        answers.add(tuple(answer.token_ids))
    assert len(answers) > 5  # a model that says the same whatever it is shown proves nothing


@pytest.mark.family
def test_qwen3_vl_refuses_what_its_tokens_do_not_allow(
    pipeline_of: Callable[[str], Pipeline], photo: Path, clip: Path
) -> None:
    pipeline = pipeline_of("qwen3_vl")
    with pytest.raises(RedipruneError, match="which kept tokens keep: ask with positions 'original'"):
        pipeline.generate(QUESTION, [photo], positions="compact")
    with pytest.raises(RedipruneError, match="makes one frame of two; leave it out"):
        pipeline.generate(QUESTION, [], [clip], frame_tolerance=0)
    with pytest.raises(RedipruneError, match="needs 2 frames at least here, not 1"):
        pipeline.generate(QUESTION, [], [clip], frames=1)


@pytest.mark.family
def test_features_of_any_size_are_remembered(pipeline_of: Callable[[str], Pipeline], photo: Path, clip: Path) -> None:
    pipeline = pipeline_of("qwen3_vl")
    options = {"keep": 0.3, "frames": 4, "max_new_tokens": 4, "temperature": 0.0}
    first = pipeline.generate(QUESTION, [photo], [clip], **options, return_visuals=True)
    again = pipeline.generate(QUESTION, [photo], [clip], **options)
    assert again.encoded_frames == 0
    assert again.token_ids == first.token_ids
    image, video = first.visuals
    assert image.grid != video.grid and (image.parts, video.parts) == (1, 2)
    drawn = draw_answer(first, pipeline.processor, QUESTION)
    assert drawn.width > 400 and drawn.height > 400


@pytest.mark.slow
def test_a_picture_that_is_scaled_down_cannot_be_pruned(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    pipeline = pipeline_of("llava_onevision")
    with pytest.raises(
        RedipruneError, match="is scaled down behind LLaVA-OneVision's projector, where pruned tokens form no"
    ):
        pipeline.generate(QUESTION, [photo], keep=0.3, prune_tiles=True)
    options = {"keep": 0.3, "prune_tiles": True, "max_new_tokens": 1, "return_visuals": True}
    answer = pipeline.generate(QUESTION, [photo, photo], **options)  # seen whole
    assert [kept.shape[0] for kept in answer.kept] == [1, 1]
    assert draw_answer(answer, pipeline.processor).height > 0


@pytest.mark.family
def test_a_request_bounds_the_pixels_of_its_pictures(
    pipeline_of: Callable[[str], Pipeline], photo: Path, clip: Path
) -> None:
    pipeline = pipeline_of("qwen3_vl")
    options = {"keep": 0.3, "frames": 4, "max_new_tokens": 4, "temperature": 0.0, "return_visuals": True}
    usual = pipeline.generate(QUESTION, [photo], [clip], **options)
    small = pipeline.generate(QUESTION, [photo], [clip], max_pixels=16 * 1024, **options)
    large = pipeline.generate(QUESTION, [photo], [clip], min_pixels=16 * 1024, **options)
    assert small.visual_tokens < usual.visual_tokens and small.encoded_frames == 3  # not the features of other sizes
    assert small.visuals[0].total <= 16 <= large.visuals[0].total
    again = pipeline.generate(QUESTION, [photo], [clip], max_pixels=16 * 1024, **options)
    assert again.encoded_frames == 0 and again.token_ids == small.token_ids
    sheet, rows = draw_answer(small, pipeline.processor, bare=True), [visual.grid[0] for visual in small.visuals]
    assert rows[0] != usual.visuals[0].grid[0] and sheet.height > 0
    with pytest.raises(RedipruneError, match="must be at most what the checkpoint has"):
        pipeline.generate(QUESTION, [photo], max_pixels=10**9)
    with pytest.raises(RedipruneError, match="for families whose pictures have any size"):
        pipeline_of("llava").generate(QUESTION, [photo], max_pixels=10**5)


@pytest.mark.parametrize("alpha, tau", [(0.0, 0.0), (2.0, 0.0), (0.5, 0.1)])
def test_alpha_and_tau_reach_the_selection(
    alpha: float, tau: float, pipeline_of: Callable[[str], Pipeline], photo: Path
) -> None:
    pipeline = pipeline_of("llava")
    reference = reference_for(eager_model(pipeline.bundle), pipeline.processor)
    expected = reference.answer(Request(QUESTION, [photo], keep=0.3, alpha=alpha, tau=tau, max_new_tokens=4))
    answer = pipeline.generate(QUESTION, [photo], keep=0.3, alpha=alpha, tau=tau, max_new_tokens=4, temperature=0.0)
    assert np.array_equal(answer.kept[0], expected.kept[0])
    plain = pipeline.generate(QUESTION, [photo], keep=0.3, max_new_tokens=4, temperature=0.0)
    assert not np.array_equal(answer.kept[0], plain.kept[0])


@pytest.mark.family
def test_selecting_keeps_what_an_answer_keeps(pipeline_of: Callable[[str], Pipeline], photo: Path, clip: Path) -> None:
    pipeline = pipeline_of("video_llava")
    options = {"frames": 3, "keep": 0.3, "alpha": 0.2}
    kept = pipeline.select(QUESTION, [photo], [clip], **options)
    answer = pipeline.generate(QUESTION, [photo], [clip], max_new_tokens=1, **options)
    assert [indices.shape[0] for indices in kept] == [1, 3]
    assert all(np.array_equal(a, b) for a, b in zip(kept, answer.kept, strict=True))
    with pytest.raises(RedipruneError, match="keep"):
        pipeline.select(QUESTION, [photo], keep=1.5)


def test_a_lazy_pipeline_opens_what_it_needs_alone(
    bundle_of: Callable[[str], Path], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_opened: list[tuple[Bundle, str]] = []  # also by pipelines of earlier tests, in the background

    def noted(backend: str, bundle: Bundle, stage: str, threads: int) -> Any:
        all_opened.append((bundle, stage))
        return open_session(backend, bundle, stage, threads)

    def opened(by: Pipeline) -> list[str]:
        return sorted(stage for bundle, stage in all_opened if bundle is by.bundle)

    monkeypatch.setattr("rediprune.runtime.pipeline.open_session", noted)
    pipeline = Pipeline.load(bundle_of("llava"), lazy=True)
    assert opened(pipeline) == []
    pipeline.select("What?", [photo], keep=0.5)
    assert opened(pipeline) == ["embed", "project", "select", "vision"]
    pipeline = Pipeline.load(bundle_of("llava"))
    pipeline.generate("What?", [photo], keep=0.5, max_new_tokens=1)
    assert opened(pipeline) == ["embed", "language", "project", "select", "vision"]  # each once


@pytest.mark.family
def test_frames_that_are_alike_are_encoded_once(pipeline_of: Callable[[str], Pipeline], tmp_path: Path) -> None:
    pipeline = pipeline_of("video_llava")
    short = make_video(tmp_path / "short.mp4", 3)  # frames come back several times
    options = {"videos": [short], "frames": 8, "keep": 4, "max_new_tokens": 4, "temperature": 0.0}

    def ask(tolerance: float | None) -> Answer:
        return pipeline.generate(QUESTION, frame_tolerance=tolerance, **options)

    every, equal, alike = ask(None), ask(0), ask(255)
    assert (every.encoded_frames, equal.encoded_frames, alike.encoded_frames) == (8, 3, 1)
    assert equal.token_ids == every.token_ids and np.array_equal(equal.kept[0], every.kept[0])
    assert (alike.kept[0] == every.kept[0][0]).all()  # as the first frame
    assert ask(0).encoded_frames == 0  # known by now


def test_the_question_steers_the_kept_set(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    pipeline = pipeline_of("llava")
    kept = [
        pipeline.generate(q, [photo], keep=6, max_new_tokens=1).kept[0].tolist()
        for q in ("A red suit?", "How many stars")
    ]
    assert kept[0] != kept[1]


@pytest.mark.family
def test_counts_and_timings(pipeline_of: Callable[[str], Pipeline], photo: Path, clip: Path) -> None:
    answer = pipeline_of("video_llava").generate(
        QUESTION, [photo], [clip], frames=2, keep=4, max_new_tokens=3, return_visuals=True
    )
    frame = answer.visuals[1].spec.patches
    assert [kept.shape for kept in answer.kept] == [(1, 4), (2, 4)]
    assert answer.kept_tokens == 12
    assert answer.visual_tokens == frame - 1 + 2 * frame  # the image drops its class token, the frames keep theirs
    assert all(answer.timings[stage] > 0 for stage in ("preprocess", "vision", "select", "project", "embed", "prefill"))
    assert sum(answer.timings[s] for s in ("vision", "select", "prefill")) <= answer.timings["time_to_first_token"]
    assert answer.timings["time_to_first_token"] <= answer.timings["total"]
    assert answer.peak_memory > 1 << 20


def test_a_second_question_does_not_encode_the_image_again(
    bundle_of: Callable[[str], Path], photo: Path, cat: Path
) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    first = pipeline.generate(QUESTION, [photo], max_new_tokens=2, return_visuals=True)
    pixels = np.asarray(first.visuals[0].frames[0])
    again = pipeline.generate("And the colour?", [pixels], max_new_tokens=2)  # the same picture from another source
    other = pipeline.generate("And the colour?", [cat], max_new_tokens=2)
    assert first.timings["vision"] > 0 and other.timings["vision"] > 0
    assert again.timings["vision"] == 0
    assert (
        again.token_ids
        == Pipeline.load(bundle_of("llava"), cache_bytes=0)
        .generate("And the colour?", [photo], max_new_tokens=2)
        .token_ids
    )


def test_several_turns(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    """A dialogue's later question sees the earlier answer; it equals the same text given at once."""
    pipeline = pipeline_of("llava")
    first = pipeline.generate(QUESTION, [photo], max_new_tokens=4, temperature=0.0)
    dialogue = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        {"role": "user", "content": [{"type": "text", "text": "And the colour?"}]},
    ]
    second = pipeline.generate(dialogue, [photo], max_new_tokens=4, temperature=0.0)
    text = pipeline.processor.render(dialogue)
    assert QUESTION in text and "And the colour?" in text
    assert pipeline.generate(text, [photo], max_new_tokens=4, temperature=0.0, chat=False).token_ids == second.token_ids
    assert second.prompt_tokens > first.prompt_tokens


def test_streaming_gives_the_answer_in_pieces(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    pipeline = pipeline_of("llava")
    whole = pipeline.generate(QUESTION, [photo], max_new_tokens=12, temperature=0.0)
    stream = pipeline.stream(QUESTION, [photo], max_new_tokens=12, temperature=0.0)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.answer.text == whole.text


class Saying:
    """A language session that says given tokens, over the logits of a real one."""

    def __init__(self, language: LanguageSession, token_ids: list[int]):
        self.language, self.token_ids = language, token_ids

    def start(self, length: int) -> "SayingDecoding":
        return SayingDecoding(self.language.start(length), iter(self.token_ids))


class SayingDecoding:
    def __init__(self, decoding: Decoding, token_ids: Iterator[int]):
        self.decoding, self.token_ids = decoding, token_ids

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        logits = np.full_like(self.decoding.step(embeds, positions, deepstack), -np.inf)
        logits[next(self.token_ids)] = 0.0
        return logits


def test_streaming_holds_back_unfinished_characters(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    """A character of several tokens decodes to as many U+FFFD as it has bytes so far (byte fallback)."""
    pipeline = pipeline_of("llava")
    spoken = "a 你 🦊."
    ids = pipeline.processor.tokenizer.encode(spoken, add_special_tokens=False)
    assert len(ids) > len(spoken)
    with pipeline.replaced(language=Saying(pipeline.stage("language"), ids)):
        stream = pipeline.stream("What is this?", [photo], max_new_tokens=len(ids), temperature=0.0)
    pieces = list(stream)  # the sessions are those that it began with
    assert "".join(pieces) == stream.answer.text == spoken
    assert stream.answer.token_ids == ids and not any("\ufffd" in piece for piece in pieces)


def test_stop_strings_end_the_answer(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    pipeline = pipeline_of("llava")
    whole = pipeline.generate(QUESTION, [photo], max_new_tokens=12, temperature=0.0)
    stop = whole.text[len(whole.text) // 2 :][:4]
    stream = pipeline.stream(QUESTION, [photo], max_new_tokens=12, temperature=0.0, stop=[stop])
    shown = "".join(stream)
    assert shown == stream.answer.text == whole.text[: whole.text.index(stop)]
    assert stream.answer.finish_reason == "stop" and whole.finish_reason == "length"


def test_stop_tokens_of_the_generation_config(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    whole = pipeline.generate(QUESTION, [photo], max_new_tokens=8, temperature=0.0)
    last = whole.token_ids[3]
    pipeline.processor.generation["eos_token_id"] = [last]
    answer = pipeline.generate(QUESTION, [photo], max_new_tokens=8, temperature=0.0)
    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(last) + 1]
    assert answer.finish_reason == "stop"


def test_sampling_is_reproducible_and_varies(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    pipeline = pipeline_of("llava")
    ids = [
        tuple(pipeline.generate(QUESTION, [photo], max_new_tokens=8, temperature=1.5, seed=seed).token_ids)
        for seed in (1, 1, 2, 3)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) > 1


@pytest.mark.parametrize("options", [{"top_p": 1.0}, {"top_k": 40}, {"seed": 3}], ids=str)
def test_a_setting_of_sampling_alone_samples(
    options: dict[str, Any], pipeline_of: Callable[[str], Pipeline], photo: Path
) -> None:
    pipeline = pipeline_of("llava")
    greedy = pipeline.generate(QUESTION, [photo], max_new_tokens=16, temperature=0.0, **options).token_ids
    assert greedy == pipeline.generate(QUESTION, [photo], max_new_tokens=16).token_ids
    assert pipeline.generate(QUESTION, [photo], max_new_tokens=16, **options).token_ids != greedy


def test_objects_and_keywords_ask_for_the_same(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    pipeline = pipeline_of("llava")
    selection = SelectOptions(keep=7, alpha=0.2)
    generation = GenerateOptions(max_new_tokens=6, temperature=1.2, seed=4)
    objects = pipeline.generate(QUESTION, [photo], selection=selection, generation=generation)
    keywords = pipeline.generate(QUESTION, [photo], keep=7, alpha=0.2, max_new_tokens=6, temperature=1.2, seed=4)
    assert objects.token_ids == keywords.token_ids and np.array_equal(objects.kept[0], keywords.kept[0])
    assert np.array_equal(pipeline.select(QUESTION, [photo], selection=selection)[0], objects.kept[0])
    mixed = pipeline.generate(QUESTION, [photo], selection=selection, generation=generation, keep=3)
    assert mixed.kept[0].shape == (1, 3) and len(mixed.token_ids) == 6
    with pytest.raises(TypeError, match="kepe"):
        pipeline.generate(QUESTION, [photo], **{"kepe": 0.5})
    with pytest.raises(TypeError, match="max_new_tokens"):
        pipeline.select(QUESTION, [photo], **{"max_new_tokens": 3})


def test_replaced_sessions_are_the_pipelines_no_longer(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    """Blocks nest, leave nothing behind after an error, and features of another tower are not mixed with its own."""
    pipeline = pipeline_of("llava")
    options: dict[str, Any] = {"keep": 6, "max_new_tokens": 5, "temperature": 0.0}
    plain = pipeline.generate(QUESTION, [photo], **options)
    vision, project = pipeline.stage("vision"), pipeline.stage("project")

    class Negated:
        batch = 1

        def __init__(self) -> None:
            self.runs = 0

        def run(self, inputs: Any) -> dict[str, Any]:
            self.runs += 1
            return {name: -np.asarray(value) for name, value in vision.run(inputs).items()}

    negated = Negated()
    with pipeline.replaced(vision=negated):
        assert pipeline.stage("vision") is negated and pipeline.stage("project") is project
        other = pipeline.generate(QUESTION, [photo], **options)
        again = pipeline.generate(QUESTION, [photo], **options)
        with pipeline.replaced(vision=vision):
            inner = pipeline.generate(QUESTION, [photo], **options)
    assert other.kept[0].tolist() != plain.kept[0].tolist() and again.token_ids == other.token_ids
    assert (negated.runs, other.encoded_frames, again.encoded_frames) == (1, 1, 0)
    assert inner.token_ids == plain.token_ids
    with pytest.raises(ZeroDivisionError), pipeline.replaced(vision=negated):
        raise ZeroDivisionError
    assert pipeline.stage("vision") is vision
    after = pipeline.generate(QUESTION, [photo], **options)
    assert after.token_ids == plain.token_ids and after.encoded_frames == 0
    with pytest.raises(RedipruneError, match="vision, select"), pipeline.replaced(ears=negated):
        pass


def test_repetition_penalty_equals_transformers(bundle_of: Callable[[str], Path], cat: Path) -> None:
    """transformers sees the ids of the whole prompt at keep 1; so do we."""
    import torch

    pipeline = Pipeline.load(bundle_of("llava"))
    model = eager_model(pipeline.bundle)
    text = pipeline.processor.render(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    )
    patches = pipeline.bundle.manifest.modalities["image"].patches
    image = pipeline.processor.image_token_id
    ids = [i for token in pipeline.processor.encode(text) for i in ([token] * patches if token == image else [token])]
    from PIL import Image

    pixels = torch.from_numpy(pipeline.processor.pixel_values([Image.open(cat)]))
    out = model.generate(
        input_ids=torch.tensor([ids]), pixel_values=pixels, do_sample=False, max_new_tokens=10, repetition_penalty=3.0
    )
    answer = pipeline.generate(QUESTION, [cat], keep=1.0, max_new_tokens=10, temperature=0.0, repetition_penalty=3.0)
    assert answer.token_ids == out[0, len(ids) :].tolist()


@pytest.mark.parametrize("stage", ["vision", "select", "project", "embed", "language"])
def test_any_stage_runs_eagerly(stage: str, bundle_of: Callable[[str], Path], photo: Path) -> None:
    engine = Pipeline.load(bundle_of("llava")).generate(QUESTION, [photo], max_new_tokens=6, temperature=0.0)
    mixed = Pipeline.load(bundle_of("llava"), eager={stage})
    assert mixed.generate(QUESTION, [photo], max_new_tokens=6, temperature=0.0).token_ids == engine.token_ids


@pytest.mark.family
def test_half_precision_answers(pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    options = {"keep": 0.5, "max_new_tokens": 1, "temperature": 0.0}
    half = pipeline_of("llava_fp16").generate(QUESTION, [photo], return_visuals=True, **options)
    full = pipeline_of("llava").generate(QUESTION, [photo], **options)
    assert half.visuals[0].features.dtype == np.float16
    overlap = np.intersect1d(half.kept[0], full.kept[0]).size / full.kept[0].size
    assert overlap > 0.8  # features rounded to half move near-ties


def test_threads_are_taken(bundle_of: Callable[[str], Path]) -> None:
    pipeline = Pipeline.load(bundle_of("llava"), threads=1)
    session = pipeline.stage("embed").session  # pyright: ignore[reportAttributeAccessIssue]
    assert session.get_session_options().intra_op_num_threads == 1


BAD_SETTINGS = {
    "keep 0": ({"keep": 0.0}, "keep"),
    "keep negative": ({"keep": -0.5}, "keep"),
    "keep above 1": ({"keep": 1.5}, "keep"),
    "keep not a number": ({"keep": float("nan")}, "keep"),
    "count 0": ({"keep": 0}, "between 1"),
    "count above P": ({"keep": 65}, "64 tokens"),
    "alpha infinite": ({"alpha": float("inf")}, "alpha"),
    "alpha negative": ({"alpha": -1.0}, "alpha"),
    "tau not a number": ({"tau": float("nan")}, "tau"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens"),
    "temperature": ({"temperature": -1.0}, "temperature"),
    "top_p": ({"top_p": 0.0, "temperature": 1.0}, "top_p"),
    "frames": ({"frames": 0}, "frames"),
    "frame tolerance": ({"frame_tolerance": -1.0}, "frame_tolerance"),
    "context": ({"max_new_tokens": 100_000}, "positions"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused(case: str, pipeline_of: Callable[[str], Pipeline], photo: Path) -> None:
    options, word = BAD_SETTINGS[case]
    with pytest.raises(RedipruneError, match=word):
        pipeline_of("llava").generate(QUESTION, [photo], **options)


def test_placeholders_and_media_must_match(pipeline_of: Callable[[str], Pipeline], photo: Path, clip: Path) -> None:
    pipeline = pipeline_of("llava")
    for question, images, word in (
        ("Two: <image> and <image>", [photo], "2 <image> placeholders and 1 image"),
        ("One: <image>", [photo, photo], "1 <image> placeholder and 2 images"),
    ):
        with pytest.raises(RedipruneError, match=word):
            pipeline.generate(question, images)
    with pytest.raises(RedipruneError, match="answers about images only"):
        pipeline.generate(QUESTION, videos=[clip])
    with pytest.raises(RedipruneError, match="positions"):
        pipeline.generate("word " * 4000, [photo])


def test_unknown_backend_and_stage(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(RedipruneError, match="ort"):
        Pipeline.load(bundle_of("llava"), backend="abacus")
    with pytest.raises(RedipruneError, match="vision, select"):
        Pipeline.load(bundle_of("llava"), eager={"ears"})


def test_a_preparation_that_nobody_waits_for_ends_between_frames(bundle_of: Callable[[str], Path], clip: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava_next_video"))
    question: Any = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
    pulses = 0

    def count() -> None:
        nonlocal pulses
        pulses += 1

    options = SelectOptions(frames=3, keep=4)
    whole = pipeline.prepare(question, videos=[clip], selection=options, pulse=count)
    assert pulses > 20  # decoded frames, then encoded ones
    for last in (1, 5, pulses):
        pipeline = Pipeline.load(bundle_of("llava_next_video"))
        left = last

        def give_up() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise AbandonedError("enough")

        with pytest.raises(AbandonedError):
            pipeline.prepare(question, videos=[clip], selection=options, pulse=give_up)
        again = pipeline.prepare(question, videos=[clip], selection=options)
        np.testing.assert_array_equal(again.prompt.embeds, whole.prompt.embeds)
