#include "plugin.h"

#include <cstdio>
#include <new>

#include "launch.h"

// Weak: where TensorRT's library is in reach when this one is loaded, the creator registers itself; where it is not
// (a host program without TensorRT, a Python that loaded libnvinfer privately), loading still succeeds and
// IPluginRegistry::loadLibrary fetches the creator through getCreators.
extern "C" __attribute__((weak)) nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;

namespace rediprune {

namespace {

enum Input : int32_t { similarity, relevance, num_keep, alpha, input_count };

nvinfer1::PluginFieldCollection const no_fields{0, nullptr};

// TensorRT reports only that a plugin returned an error, so the reason goes to stderr.
int32_t refuse(char const* reason) noexcept {
    std::fprintf(stderr, "rediprune::%s: %s\n", plugin_name, reason);
    return 1;
}

int32_t check(nvinfer1::Dims const& s, nvinfer1::Dims const& r, nvinfer1::Dims const& indices) noexcept {
    if (s.nbDims != 3 || r.nbDims != 2 || indices.nbDims != 2)
        return refuse("similarity must be [F, P, P], relevance [F, P] and indices [F, K]");
    if (s.d[1] != s.d[2] || s.d[0] != r.d[0] || s.d[1] != r.d[1])
        return refuse("similarity [F, P, P] and relevance [F, P] disagree on F or P");
    if (!fits(static_cast<int>(s.d[1]))) return refuse("a frame may have 1 to 8192 tokens");
    if (indices.d[1] > s.d[1]) return refuse("num_keep is larger than the number of tokens of a frame");
    return 0;
}

}  // namespace

nvinfer1::IPluginCapability* MaxMinSelect::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* MaxMinSelect::clone() noexcept {
    return new (std::nothrow) MaxMinSelect(*this);
}

int32_t MaxMinSelect::getOutputDataTypes(nvinfer1::DataType* outputs, int32_t outputCount,
                                         nvinfer1::DataType const*, int32_t inputCount) const noexcept {
    if (inputCount != input_count || outputCount != 1) return refuse("takes 4 inputs and gives 1 output");
    outputs[0] = nvinfer1::DataType::kINT64;
    return 0;
}

int32_t MaxMinSelect::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount,
                                      nvinfer1::DimsExprs const* shapeInputs, int32_t shapeInputCount,
                                      nvinfer1::DimsExprs* outputs, int32_t outputCount,
                                      nvinfer1::IExprBuilder&) noexcept {
    if (inputCount != input_count || outputCount != 1) return refuse("takes 4 inputs and gives 1 output");
    if (shapeInputCount != 1 || shapeInputs[0].nbDims != 1)
        return refuse("num_keep must be a scalar shape input: set tensorrt_plugin_shape_input_indices = [2] on the node");
    if (inputs[similarity].nbDims != 3) return refuse("similarity must be [F, P, P]");
    outputs[0].nbDims = 2;
    outputs[0].d[0] = inputs[similarity].d[0];
    outputs[0].d[1] = shapeInputs[0].d[0];  // a shape input's "dimensions" are its values
    return 0;
}

bool MaxMinSelect::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                             int32_t inputCount, int32_t outputCount) noexcept {
    if (inputCount != input_count || outputCount != 1) return false;
    auto const& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    switch (position) {
        case num_keep:
            return tensor.type == nvinfer1::DataType::kINT64 || tensor.type == nvinfer1::DataType::kINT32;
        case input_count: return tensor.type == nvinfer1::DataType::kINT64;
        default: return tensor.type == nvinfer1::DataType::kFLOAT;
    }
}

int32_t MaxMinSelect::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
                                      nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t outputCount) noexcept {
    if (inputCount != input_count || outputCount != 1) return refuse("takes 4 inputs and gives 1 output");
    return check(inputs[similarity].max, inputs[relevance].max, outputs[0].max);
}

int32_t MaxMinSelect::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount,
                                    nvinfer1::PluginTensorDesc const* outputs, int32_t outputCount) noexcept {
    if (inputCount != input_count || outputCount != 1) return refuse("takes 4 inputs and gives 1 output");
    return check(inputs[similarity].dims, inputs[relevance].dims, outputs[0].dims);
}

int32_t MaxMinSelect::enqueue(nvinfer1::PluginTensorDesc const* inputDescs,
                              nvinfer1::PluginTensorDesc const* outputDescs, void const* const* inputs,
                              void* const* outputs, void*, cudaStream_t stream) noexcept {
    auto const& shape = inputDescs[similarity].dims;
    auto const error = launch_maxmin_select(
        static_cast<float const*>(inputs[similarity]), static_cast<float const*>(inputs[relevance]),
        static_cast<float const*>(inputs[alpha]), static_cast<std::int64_t*>(outputs[0]), static_cast<int>(shape.d[0]),
        static_cast<int>(shape.d[1]), static_cast<int>(outputDescs[0].dims.d[1]), stream);
    return error == cudaSuccess ? 0 : refuse(cudaGetErrorString(error));
}

nvinfer1::IPluginV3* MaxMinSelect::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

nvinfer1::PluginFieldCollection const* MaxMinSelect::getFieldsToSerialize() noexcept {
    return &no_fields;
}

nvinfer1::PluginFieldCollection const* MaxMinSelectCreator::getFieldNames() noexcept {
    return &no_fields;
}

nvinfer1::IPluginV3* MaxMinSelectCreator::createPlugin(char const*, nvinfer1::PluginFieldCollection const*,
                                                       nvinfer1::TensorRTPhase) noexcept {
    return new (std::nothrow) MaxMinSelect;
}

namespace {

MaxMinSelectCreator creator;

bool register_creator() noexcept {
    auto* const registry = getPluginRegistry ? getPluginRegistry() : nullptr;
    return registry && registry->registerCreator(creator, plugin_namespace);
}

bool const registered = register_creator();

}  // namespace

}  // namespace rediprune

#define REDIPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

// 1 if the creator registered itself when this library was loaded.
REDIPRUNE_EXPORT int32_t rediprune_is_registered() noexcept {
    return rediprune::registered;
}

// Entry points of IPluginRegistry::loadLibrary, which fails if a creator is registered already.
REDIPRUNE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&rediprune::creator};
    count = rediprune::registered ? 0 : 1;
    return creators;
}

REDIPRUNE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) noexcept {}
