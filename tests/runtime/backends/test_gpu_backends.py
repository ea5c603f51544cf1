"""Backends that need a GPU: what they say without one, and their own logic over stand-ins (`support.fake_gpu`)."""

import importlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rediprune.export.build.shape_profiles import profile_of, ranges
from rediprune.graphs.selection.cuda import launcher
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends import cuda_select as kernel
from rediprune.runtime.backends import device, ort, ort_cuda, tensorrt
from rediprune.runtime.backends.session import open_stage
from rediprune.runtime.bundle import Bundle, EngineSpec, file_sha256

QUESTION = "What is left of the red ball?"
PICTURE = Path(__file__).parents[2] / "media" / "coffee.jpg"


@pytest.fixture(
    scope="session",
    params=["llava_qwen2", pytest.param("llava_qwen2_fp16", marks=pytest.mark.slow)],
    ids=["fp32", "fp16"],
)
def exported(request, bundle_of):
    return bundle_of(request.param)


@pytest.fixture
def bundle(exported, tmp_path):
    """A bundle with made-up engines: each holds the path of the graph it stands for."""
    folder = Path(shutil.copytree(exported, tmp_path / "bundle"))
    opened = Bundle.open(folder)
    manifest = opened.manifest
    sizes = ranges(manifest, ["cache=256", "frames=1:2:4"])
    for backend, title in (("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX")):
        engines = EngineSpec(
            library=title,
            version="9.9",
            stages=list(manifest.stages),
            precision={name: stage.precision for name, stage in manifest.stages.items()},
            compute_capability=["sm_89"],
            profile={name: profile_of(name, stage, sizes) for name, stage in manifest.stages.items()},
            source_sha256={name: stage.sha256 for name, stage in manifest.stages.items()},
        )
        for name, stage in manifest.stages.items():
            file = EngineSpec.file(backend, name)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(str(folder / stage.file))
            engines.files[file] = file_sha256(folder / file)
        manifest.engines[backend] = engines
    opened.write_manifest()
    return folder


@pytest.fixture
def gpu(monkeypatch, fake_gpu):
    """Stand-ins for the driver, the CUDA runtime and both nvinfer modules."""
    cuda = fake_gpu.Cuda()
    device._stream.cache_clear()
    modules = {"cuda.bindings.runtime": cuda, "cuda.bindings.driver": fake_gpu.Driver}
    monkeypatch.setattr(device, "import_module", modules.__getitem__)
    monkeypatch.setattr(tensorrt, "load_library", lambda backend: fake_gpu.Nvinfer(cuda))
    monkeypatch.setattr(tensorrt, "compute_capability", lambda backend: "sm_89")
    monkeypatch.setattr(tensorrt, "find_plugin", lambda backend: None)
    monkeypatch.setattr(kernel, "compute_capability", lambda backend, instead: "sm_89")
    monkeypatch.setattr(launcher, "load_kernels", lambda: fake_gpu.Kernels(cuda))
    # Device memory lies on the host here, so that ONNX Runtime takes its addresses as the CPU's.
    monkeypatch.setattr(ort_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(
        ort_cuda, "_session", lambda bundle, stage: fake_gpu.WaitingSession(ort._session(bundle, stage, 0), cuda)
    )
    yield cuda
    device._stream.cache_clear()


def ask(folder, backend, **options):
    pipeline = Pipeline.load(folder, backend)
    return pipeline.generate(QUESTION, [PICTURE], max_new_tokens=8, temperature=0, **options)


def same(ours, theirs):
    return ours.token_ids == theirs.token_ids and all(map(np.array_equal, ours.kept, theirs.kept))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
def test_without_a_gpu_or_its_package_a_backend_says_so_in_one_line(bundle, backend, monkeypatch):
    monkeypatch.setattr("rediprune.runtime.backends.gpu._LIBRARY", "libno-such-driver.so")
    with pytest.raises(RedipruneError, match=rf"backend '{backend}' needs .*--backend ort") as caught:
        ask(bundle, backend)
    assert "\n" not in str(caught.value)


def test_a_driver_without_a_gpu_is_one_line(bundle, monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 100  # CUDA_ERROR_NO_DEVICE

        def cuGetErrorString(self, status, text):
            text._obj.value = b"no CUDA-capable device is detected"

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    with pytest.raises(
        RedipruneError, match="needs an NVIDIA GPU and the driver gives error 100, no CUDA-capable device is detected"
    ):
        importlib.import_module("rediprune.runtime.backends.gpu").compute_capability("tensorrt")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
@pytest.mark.parametrize("keep", [1.0, 0.15])
def test_answers_are_those_of_onnx_runtime(bundle, gpu, backend, keep):
    answer = ask(bundle, backend, keep=keep)
    assert same(answer, ask(bundle, "ort", keep=keep))
    # TensorRT's decoding runs as one captured graph from the second step on; RTX captures by itself.
    steps = len(answer.token_ids) - 1  # the first token is prefill's
    assert steps > 2
    assert (len(gpu.graphs), gpu.launches) == ((1, steps - 1) if backend == "tensorrt" else (0, 0))


def test_caches_are_reused_and_requests_may_interleave(bundle, gpu):
    language = tensorrt.open_language(Bundle.open(bundle), 0, "tensorrt")
    reference = Pipeline.load(bundle, "ort").stage("language")
    random = np.random.default_rng(0)

    def embeds(tokens):
        return random.standard_normal((1, tokens, language.decoder.width)).astype(language.dtype)

    pairs = [(language.start(40), reference.start(40)) for _ in range(2)]
    for tokens in (9, 1, 1, 1, 1):
        for ours, theirs in pairs:
            step = embeds(tokens)
            assert np.array_equal(ours.step(step), theirs.step(step))
    assert gpu.graphs == []  # the other request's calls lie between any two
    step, apart = embeds(2), np.array([[40, 90]])  # positions that are not the tokens' slots
    near, far = (pairs[0][at].step(step, apart) for at in (0, 1))
    assert np.array_equal(near, far) and not np.array_equal(near, pairs[1][1].step(step))
    del pairs, ours, theirs
    assert len(language.idle) == 2
    gpu.cudaStreamSynchronize(7)
    before = len(gpu.blocks)
    again, fresh = language.start(40), reference.start(40)
    step = embeds(12)
    assert np.array_equal(again.step(step), fresh.step(step))
    assert len(gpu.blocks) == before and len(language.idle) == 1


def test_shapes_outside_the_profile_are_refused_with_the_profile(bundle, gpu):
    opened = Bundle.open(bundle)
    width = opened.manifest.decoder.width
    select = tensorrt.open_stage(opened, "select", 0, "tensorrt")
    feed = {
        "features": np.zeros((5, 64, 32)),
        "text_embeds": np.zeros((3, width)),
        "num_keep": np.array(4),
        "alpha": np.array(0.5),
        "tau": np.array(0.0),
    }
    says = r"'select' engine takes features 1×1×32 to 4×64×32.*features is 5×64×32.*--profile"
    with pytest.raises(RedipruneError, match=says):
        select.run(feed)
    feed |= {"features": np.zeros((1, 64, 32)), "num_keep": np.array(65)}
    with pytest.raises(RedipruneError, match="num_keep 1 to 64, and num_keep is 65"):
        select.run(feed)
    with pytest.raises(RedipruneError, match=r"300 positions.*has 256.*--profile cache=300"):
        tensorrt.open_language(opened, 0, "tensorrt").start(300)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("version", r"built by TensorRT 0\.1 and 9\.9 is installed"),
        ("target", "are for sm_120 and this GPU is sm_89"),
        ("graph", "was built from another graph"),
        ("file", "truncated"),
        ("gone", "is missing"),
        ("stage", "has no tensorrt engine of 'vision'"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_before_it_is_loaded(bundle, gpu, monkeypatch, fake_gpu, spoil, says):
    monkeypatch.setattr(fake_gpu.Nvinfer, "Runtime", None)  # loading would fail otherwise
    opened = Bundle.open(bundle)
    engines = opened.manifest.engines["tensorrt"]
    file = bundle / EngineSpec.file("tensorrt", "vision")
    if spoil == "version":
        engines.version = "0.1"
    elif spoil == "target":
        engines.compute_capability = ["sm_120"]
    elif spoil == "graph":
        engines.source_sha256["vision"] = "0" * 64
    elif spoil == "file":
        file.write_bytes(file.read_bytes()[:-1])
    elif spoil == "gone":
        file.unlink()
    else:
        engines.stages.remove("vision")
    opened.write_manifest()
    with pytest.raises(RedipruneError, match=says + r".*rediprune build .* --backend tensorrt --force"):
        ask(bundle, "tensorrt")


def test_a_gpu_that_tensorrt_rtx_does_not_run_on_is_said_so(bundle, gpu, monkeypatch):
    monkeypatch.setattr(tensorrt, "compute_capability", lambda backend: "sm_90")
    with pytest.raises(
        RedipruneError, match=r"TensorRT-RTX does not run on this GPU, which is sm_90.*--backend tensorrt"
    ):
        ask(bundle, "tensorrt-rtx")


def test_a_driver_that_is_too_old_is_one_line(bundle, gpu, monkeypatch, fake_gpu):
    gpu.state = 35
    with pytest.raises(RedipruneError, match=r"insufficient; update NVIDIA's driver, or use --backend ort"):
        ask(bundle, "tensorrt")
    gpu.state = 0

    def no_runtime(self, log):
        log.log(self.ILogger.Severity.ERROR, "CUDA initialization failure with error 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake_gpu.Nvinfer, "Runtime", no_runtime)
    with pytest.raises(RedipruneError, match=r"TensorRT does not start \(CUDA initialization failure with error 35\)"):
        ask(bundle, "tensorrt")


def test_a_full_gpu_is_one_line(bundle, gpu):
    gpu.limit = 1000
    with pytest.raises(RedipruneError, match=r"out of memory.*--backend ort"):
        ask(bundle, "tensorrt")


GPU_STAGES = ["tensorrt", "tensorrt-rtx", "ort-cuda", {"default": "tensorrt-rtx", "select": "kernel"}]


@pytest.mark.parametrize("backend", GPU_STAGES, ids=str)
def test_features_and_kept_tokens_stay_on_the_gpu(bundle, gpu, backend):
    """The host gets the kept indices and the logits, the GPU the pixels and the ids: nothing else crosses."""
    pipeline = Pipeline.load(bundle, backend)
    answer = pipeline.generate(QUESTION, [PICTURE], max_new_tokens=5, temperature=0)
    manifest = pipeline.bundle.manifest
    width, size = manifest.decoder.width, np.dtype(manifest.stages["vision"].inputs[0].dtype).itemsize
    down = [answer.kept[0].nbytes]
    if backend != "ort-cuda":  # which downloads its logits by itself
        down += [manifest.decoder.vocabulary * size] * len(answer.token_ids)
    if isinstance(backend, dict):  # the question's embeddings are pooled on the host
        (question,) = set(gpu.copies[2]) - set(down)
        assert question % (width * size) == 0 and question < answer.prompt_tokens * width * size
        down.append(question)
    assert sorted(gpu.copies[2]) == sorted(down)

    pixels = 3 * manifest.image_size**2 * size
    ids = 8 * (answer.prompt_tokens + 1)
    query = 4 * manifest.channels  # of the kernels
    positions = 8 * (answer.prompt_tokens + answer.kept_tokens)
    assert gpu.copies[1].count(pixels) == 1 and set(gpu.copies[1]) <= {pixels, ids, query, positions, 8, 4}


def test_a_stage_on_the_cpu_between_two_on_the_gpu_costs_a_round_trip(bundle, gpu):
    pipeline = Pipeline.load(bundle, {"default": "tensorrt", "select": "ort"})
    answer = pipeline.generate(QUESTION, [PICTURE], max_new_tokens=1, temperature=0, return_visuals=True)
    features = answer.visuals[0].features
    assert features.nbytes in gpu.copies[2]  # so the test above would see one
    assert features.nbytes * answer.kept_tokens // answer.visual_tokens in gpu.copies[1]


def test_what_a_stage_gave_is_the_callers(bundle, gpu):
    opened = Bundle.open(bundle)
    random = np.random.default_rng(0)
    shape = (2, 3, opened.manifest.image_size, opened.manifest.image_size)
    for backend in ("tensorrt", "ort-cuda"):
        vision = open_stage(backend, opened, "vision", 0)
        first = vision.run({"pixel_values": random.standard_normal(shape)})["features"]
        before = np.asarray(first)
        second = vision.run({"pixel_values": random.standard_normal(shape)})["features"]
        assert not np.array_equal(before, np.asarray(second))
        assert np.array_equal(before, np.asarray(first))


@pytest.mark.parametrize("backend", GPU_STAGES, ids=str)
def test_features_are_remembered_on_the_gpu_within_the_bound(bundle, gpu, backend):
    reference = Pipeline.load(bundle, "ort", cache_bytes=0)
    pipeline = Pipeline.load(bundle, backend)
    pictures = [PICTURE, PICTURE.with_name("chelsea.jpg")]
    for picture, question in ((0, QUESTION), (1, QUESTION), (0, "What colour is it?"), (1, "Why?")):
        asked = (question, [pictures[picture]])
        theirs = reference.generate(*asked, max_new_tokens=4, temperature=0, return_visuals=True)
        assert same(pipeline.generate(*asked, max_new_tokens=4, temperature=0), theirs)
    features = theirs.visuals[0].features.nbytes
    assert pipeline.cache.size == 2 * features
    pixels = 3 * pipeline.bundle.manifest.image_size**2 * theirs.visuals[0].features.itemsize
    assert gpu.copies[1].count(pixels) == 2  # each picture was encoded once

    pipeline = Pipeline.load(bundle, backend, cache_bytes=features)
    used = []
    for picture in (0, 1, 0, 1):
        pipeline.generate(QUESTION, [pictures[picture]], max_new_tokens=2, temperature=0)
        gpu.cudaStreamSynchronize(7)
        used.append(sum(gpu.blocks.values()))
    assert pipeline.cache.size == features and len(set(used)) == 1


@pytest.mark.parametrize("backend", GPU_STAGES, ids=str)
def test_threads_take_turns_on_the_gpu(bundle, gpu, backend):
    """Copies, captures and frees of several requests at once; the stand-in asserts that no capture takes in another's."""
    pictures = [PICTURE, PICTURE.with_name("chelsea.jpg")]
    asked = [(question, [picture]) for question in (QUESTION, "Why?", "What colour is it?") for picture in pictures]
    reference = Pipeline.load(bundle, "ort")
    expected = [reference.generate(*each, max_new_tokens=6, temperature=0) for each in asked]
    pipeline = Pipeline.load(bundle, backend, cache_bytes=20_000)  # one picture's: features are freed all the time

    def work(number):
        for at in np.random.default_rng(number).permutation(len(asked)):
            assert same(pipeline.generate(*asked[at], max_new_tokens=6, temperature=0), expected[at])
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]


def test_memory_dropped_during_a_capture_is_freed_after_it(bundle, gpu):
    stream = device.open_stream("tensorrt")
    dropped = [stream.empty((100,), np.float32)]
    kept = stream.empty((100,), np.float32)
    before = len(gpu.blocks)

    def enqueue():
        dropped.clear()  # as the garbage collector may
        stream.clear(kept)

    stream.capture(enqueue)
    stream.synchronize()
    assert len(gpu.blocks) == before - 1
    assert [len(graph) for graph in gpu.graphs] == [1]


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_the_kernel_session_selects_as_onnx_runtime(bundle, gpu, tau):
    opened = Bundle.open(bundle)
    random = np.random.default_rng(1)
    feed = {
        "features": random.standard_normal((3, 64, opened.manifest.channels)),
        "text_embeds": random.standard_normal((7, opened.manifest.decoder.width)),
        "num_keep": np.array(9),
        "alpha": np.array(0.5),
        "tau": np.array(tau),
    }
    ours = kernel.open_stage(opened, "select", 0).run(feed)
    theirs = ort.open_stage(opened, "select", 0).run(feed)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        assert np.array_equal(np.asarray(ours[name]), array)


@pytest.mark.parametrize("threshold", [-np.inf, 0.9])
def test_the_kernel_session_selects_over_a_clip_as_onnx_runtime(bundle, gpu, threshold):
    opened = Bundle.open(bundle)
    random = np.random.default_rng(1)
    feed = {
        "features": random.standard_normal((3, 64, opened.manifest.channels)),
        "text_embeds": random.standard_normal((7, opened.manifest.decoder.width)),
        "num_keep": np.array(30),
        "alpha": np.array(0.5),
        "min_per_frame": np.array(2),
        "threshold": np.array(threshold),
    }
    ours = kernel.open_stage(opened, "select_clip", 0).run(feed)
    theirs = ort.open_stage(opened, "select_clip", 0).run(feed)
    assert (len(theirs["indices"]) < 90) == (threshold > 0)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        assert np.array_equal(np.asarray(ours[name]), array)


def test_tiles_are_laid_out_on_the_gpu(bundle_of, gpu):
    for options in ({"keep": 0.3, "prune_tiles": True}, {"keep": 1.0}):
        asked = {"max_new_tokens": 4, "temperature": 0, **options}
        theirs = Pipeline.load(bundle_of("llava_next_video"), "ort").generate(QUESTION, [PICTURE], **asked)
        ours = Pipeline.load(bundle_of("llava_next_video"), "ort-cuda").generate(QUESTION, [PICTURE], **asked)
        assert same(ours, theirs) and ours.kept_tokens == theirs.kept_tokens
        assert set(gpu.copies[2]) == ({ours.kept[0].nbytes} if ours.kept_tokens < ours.visual_tokens else set())
        gpu.copies[2].clear()


@pytest.mark.parametrize("vision", ["ort", "ort-cuda", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("language", ["ort", "ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_backends_mix(bundle, gpu, vision, language):
    mixed = {"default": language, "vision": vision, "select": "kernel", "project": vision}
    assert same(ask(bundle, mixed, keep=0.2), ask(bundle, "ort", keep=0.2))


def test_a_backend_per_stage(bundle, gpu):
    mixed = {"default": "tensorrt", "vision": "ort", "embed": "ort"}
    assert ask(bundle, mixed).token_ids == ask(bundle, "ort").token_ids
    pipeline = Pipeline.load(bundle, {"language": "tensorrt-rtx"}, eager={"vision"})
    assert pipeline.backends["vision"] == "eager" and pipeline.backends["select"] == "ort"
    assert pipeline.backends["language"] == "tensorrt-rtx"
    with pytest.raises(RedipruneError, match="stage 'visoin' is not one"):
        Pipeline.load(bundle, {"visoin": "ort"})
    with pytest.raises(RedipruneError, match="backend 'cuda' is not known"):
        Pipeline.load(bundle, {"vision": "cuda"})


def test_the_kernel_session_is_for_select_only(bundle):
    with pytest.raises(RedipruneError, match="'select' and 'select_clip' only"):
        ask(bundle, "kernel")
