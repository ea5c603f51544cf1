// The ONNX node rediprune::MaxMinSelect as a TensorRT plugin (IPluginV3).
//
//   inputs   0 similarity [F, P, P] float32 · 1 relevance [F, P] float32 · 2 num_keep, a scalar and shape input
//            (node attribute tensorrt_plugin_shape_input_indices = [2]) · 3 alpha, float32 scalar
//   output   0 indices [F, K] int64, ascending
//
// The plugin has no parameters: everything is an input, so nothing is serialised but its name and version.
#pragma once

#include "NvInferRuntime.h"

namespace rediprune {

inline constexpr char const* plugin_name = "MaxMinSelect";
inline constexpr char const* plugin_version = "1";
inline constexpr char const* plugin_namespace = "rediprune";

class MaxMinSelect : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override { return plugin_name; }
    char const* getPluginVersion() const noexcept override { return plugin_version; }
    char const* getPluginNamespace() const noexcept override { return plugin_namespace; }

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t outputCount, nvinfer1::DataType const* inputs,
                               int32_t inputCount) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount,
                            nvinfer1::DimsExprs const* shapeInputs, int32_t shapeInputCount,
                            nvinfer1::DimsExprs* outputs, int32_t outputCount,
                            nvinfer1::IExprBuilder& expressions) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   int32_t inputCount, int32_t outputCount) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
                            nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t outputCount) noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount,
                          nvinfer1::PluginTensorDesc const* outputs, int32_t outputCount) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDescs, nvinfer1::PluginTensorDesc const* outputDescs,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;
};

class MaxMinSelectCreator : public nvinfer1::IPluginCreatorV3One {
  public:
    char const* getPluginName() const noexcept override { return plugin_name; }
    char const* getPluginVersion() const noexcept override { return plugin_version; }
    char const* getPluginNamespace() const noexcept override { return plugin_namespace; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
};

}  // namespace rediprune
