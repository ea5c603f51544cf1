// Proof of the plugin on a GPU without TensorRT's library, whose plugin classes are header-only: creates the plugin as
// a builder and a runtime would, walks through formats, shapes and configuration, enqueues on random frames, also in
// a CUDA graph, and compares with the same greedy code run by one CPU thread.
//
//   make -C graphs/selection/tensorrt_plugin proof TENSORRT_ROOT=… && graphs/selection/tensorrt_plugin/build/enqueue_proof
//
// An argument leaves out frames of more tokens than that (for compute-sanitizer's racecheck, which is slow).
// Exit 0: all equal. 1: a difference or a failure. 2: no GPU.

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include <cuda_runtime_api.h>

#include "greedy.cuh"
#include "plugin.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept;

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

#define REQUIRE(condition)                                                                 \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                  \
        }                                                                                  \
    } while (0)

constexpr int largest_frame = 4096;

struct SerialTeam {
    int rank() const { return 0; }
    int size() const { return 1; }
    void sync() const {}
    rediprune::candidate_t best(rediprune::candidate_t mine) const { return mine; }
};

// A symbolic dimension: the plugin must pass these on, not compute with them.
class Symbol : public nvinfer1::IDimensionExpr, nvinfer1::apiv::VDimensionExpr {
  public:
    Symbol() { mImpl = this; }
    bool isConstant() const noexcept override { return false; }
    int64_t getConstantValue() const noexcept override { return INT64_MIN; }
    bool isSizeTensor() const noexcept override { return false; }
};

class Expressions : public nvinfer1::IExprBuilder {
  public:
    Expressions() { mImpl = nullptr; }  // the plugin builds no expressions
};

struct Case {
    int frames, patches, count;
    float alpha;
    bool ties, exclusions;
};

PluginTensorDesc describe(Dims dims, DataType type) {
    return {dims, type, nvinfer1::TensorFormat::kLINEAR, 1.0f};
}

template <class T>
std::unique_ptr<T, cudaError_t (*)(void*)> on_device(std::vector<T> const& host) {
    void* memory = nullptr;
    REQUIRE(cudaMalloc(&memory, host.size() * sizeof(T)) == cudaSuccess);
    REQUIRE(cudaMemcpy(memory, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
    return {static_cast<T*>(memory), cudaFree};
}

// Random symmetric S and r; with ties they take few values, with exclusions some r are −inf.
void fill(Case const& c, std::mt19937& random, std::vector<float>& s, std::vector<float>& r) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    auto const draw = [&] { return c.ties ? float(int(uniform(random) * 4)) / 4 : uniform(random); };
    for (int f = 0; f < c.frames; ++f)
        for (int i = 0; i < c.patches; ++i) {
            for (int j = 0; j <= i; ++j) {
                auto const at = [&](int a, int b) -> float& { return s[(size_t(f) * c.patches + a) * c.patches + b]; };
                at(i, j) = at(j, i) = i == j ? 1 : draw();
            }
            r[size_t(f) * c.patches + i] = c.exclusions && i % 3 == 0 ? -1.0f / 0.0f : draw();
        }
}

// Walks one case through the plugin; returns the number of frames that differ from the CPU.
int run(nvinfer1::IPluginV3& prototype, Case const& c, std::mt19937& random) {
    std::vector<float> s(size_t(c.frames) * c.patches * c.patches), r(size_t(c.frames) * c.patches), alpha{c.alpha};
    std::vector<int64_t> keep{c.count}, indices(size_t(c.frames) * c.count, -1), expected(indices.size());
    fill(c, random, s, r);

    PluginTensorDesc const inputs[] = {describe({3, {c.frames, c.patches, c.patches}}, DataType::kFLOAT),
                                       describe({2, {c.frames, c.patches}}, DataType::kFLOAT),
                                       describe({0, {}}, DataType::kINT64), describe({0, {}}, DataType::kFLOAT)};
    PluginTensorDesc const outputs[] = {describe({2, {c.frames, c.count}}, DataType::kINT64)};
    DynamicPluginTensorDesc in[4], out[1];
    for (int i = 0; i < 4; ++i) in[i] = {inputs[i], inputs[i].dims, inputs[i].dims, inputs[i].dims};
    out[0] = {outputs[0], outputs[0].dims, outputs[0].dims, outputs[0].dims};
    auto* const build = static_cast<nvinfer1::IPluginV3OneBuild*>(
        prototype.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    REQUIRE(build->configurePlugin(in, 4, out, 1) == 0);

    auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        prototype.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    std::unique_ptr<nvinfer1::IPluginV3> attached(runtime->attachToContext(nullptr));
    auto* const context = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    REQUIRE(context->onShapeChange(inputs, 4, outputs, 1) == 0);

    auto const device_s = on_device(s), device_r = on_device(r), device_alpha = on_device(alpha);
    auto const device_keep = on_device(keep), device_indices = on_device(indices);
    void const* const pointers[] = {device_s.get(), device_r.get(), device_keep.get(), device_alpha.get()};
    void* const results[] = {device_indices.get()};
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t captured;
    REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    REQUIRE(context->enqueue(inputs, outputs, pointers, results, nullptr, stream) == 0);
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&captured, graph, 0) == cudaSuccess);

    for (int f = 0; f < c.frames; ++f) {
        std::vector<unsigned> bitmap(c.patches / 32 + 1);
        SerialTeam team;
        rediprune::greedy_max_min<largest_frame>(
            team, bitmap.data(), s.data() + size_t(f) * c.patches * c.patches, r.data() + size_t(f) * c.patches,
            c.alpha, c.patches, c.count,
            reinterpret_cast<rediprune::index_t*>(expected.data()) + size_t(f) * c.count);
    }
    int different = 0;
    for (bool const replay : {false, true}) {
        REQUIRE(cudaMemset(device_indices.get(), 0xff, indices.size() * sizeof(int64_t)) == cudaSuccess);
        if (replay)
            REQUIRE(cudaGraphLaunch(captured, stream) == cudaSuccess);
        else
            REQUIRE(context->enqueue(inputs, outputs, pointers, results, nullptr, stream) == 0);
        REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
        REQUIRE(cudaMemcpy(indices.data(), device_indices.get(), indices.size() * sizeof(int64_t),
                           cudaMemcpyDeviceToHost) == cudaSuccess);
        for (int f = 0; f < c.frames; ++f)
            for (int k = 0; k < c.count; ++k)
                if (indices[size_t(f) * c.count + k] != expected[size_t(f) * c.count + k]) {
                    ++different;
                    break;
                }
    }
    cudaGraphExecDestroy(captured);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return different;
}

void check_build_time(nvinfer1::IPluginV3& plugin) {
    auto* const build = static_cast<nvinfer1::IPluginV3OneBuild*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    REQUIRE(build->getNbOutputs() == 1);
    DataType const types[] = {DataType::kFLOAT, DataType::kFLOAT, DataType::kINT64, DataType::kFLOAT};
    DataType type;
    REQUIRE(build->getOutputDataTypes(&type, 1, types, 4) == 0 && type == DataType::kINT64);

    Symbol frames, patches, keep;
    nvinfer1::DimsExprs const shapes[] = {
        {3, {&frames, &patches, &patches}}, {2, {&frames, &patches}}, {0, {}}, {0, {}}};
    nvinfer1::DimsExprs const values[] = {{1, {&keep}}};
    nvinfer1::DimsExprs shape{};
    Expressions expressions;
    REQUIRE(build->getOutputShapes(shapes, 4, values, 1, &shape, 1, expressions) == 0);
    REQUIRE(shape.nbDims == 2 && shape.d[0] == &frames && shape.d[1] == &keep);
    REQUIRE(build->getOutputShapes(shapes, 4, nullptr, 0, &shape, 1, expressions) != 0);  // num_keep not a shape input

    DynamicPluginTensorDesc tensors[5] = {};
    for (int i = 0; i < 5; ++i) tensors[i].desc = describe({1, {1}}, i == 4 ? DataType::kINT64 : types[i]);
    for (int i = 0; i < 5; ++i) REQUIRE(build->supportsFormatCombination(i, tensors, 4, 1));
    for (int i = 0; i < 5; ++i) {
        tensors[i].desc.type = DataType::kHALF;
        REQUIRE(!build->supportsFormatCombination(i, tensors, 4, 1));
    }
    PluginTensorDesc const inputs[] = {describe({3, {1, 4, 4}}, DataType::kFLOAT),
                                       describe({2, {1, 4}}, DataType::kFLOAT), describe({0, {}}, DataType::kINT64),
                                       describe({0, {}}, DataType::kFLOAT)};
    PluginTensorDesc const too_many = describe({2, {1, 5}}, DataType::kINT64);
    auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    REQUIRE(runtime->onShapeChange(inputs, 4, &too_many, 1) != 0);  // K above P
    REQUIRE(runtime->getFieldsToSerialize()->nbFields == 0);
}

}  // namespace

int main(int argc, char** argv) {
    int const largest = argc > 1 ? std::atoi(argv[1]) : largest_frame;
    int count = 0;
    auto* const* const creators = getCreators(count);
    REQUIRE(count == 1);
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
    std::unique_ptr<nvinfer1::IPluginV3> built(creator->createPlugin("select", nullptr, nvinfer1::TensorRTPhase::kBUILD));
    check_build_time(*built);
    // What an engine stores is the plugin's name, version, namespace and fields; a runtime makes a new one from them.
    auto* const stored = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        built->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    std::unique_ptr<nvinfer1::IPluginV3> restored(
        creator->createPlugin("select", stored->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));

    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::puts("build-time paths passed; enqueue was not run: no GPU");
        return 2;
    }
    cudaDeviceProp device;
    REQUIRE(cudaGetDeviceProperties(&device, 0) == cudaSuccess);

    Case const cases[] = {
        {1, 1, 1, 0.5f, false, false},      {3, 2, 1, 0.5f, false, false},      {2, 31, 31, 0.5f, false, false},
        {8, 144, 22, 0.5f, false, false},   {8, 576, 86, 0.5f, false, false},   {4, 577, 300, 0.7f, true, false},
        {4, 1024, 512, 0.0f, true, true},   {2, 1025, 100, 0.5f, false, true},  {1, 4096, 614, 0.5f, false, false},
        {1, 4096, 2000, 0.3f, true, false}, {2, 200, 199, 0.5f, true, false},
        {1, 3000, 70, 0.5f, true, true},     {64, 33, 7, 2.0f, true, true},
    };
    std::mt19937 random(0);
    int frames = 0, different = 0;
    for (Case const& c : cases) {
        if (c.patches > largest) continue;
        different += run(*restored, c, random);
        frames += 2 * c.frames;  // enqueued directly, and replayed from a CUDA graph
    }
    std::printf("%s: %d frames enqueued, %d differ from the CPU\n", device.name, frames, different);
    return different ? 1 : 0;
}
