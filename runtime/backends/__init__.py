"""What runs a stage. A backend is registered in `session.BACKENDS`, and `session` has the interface that all have.

- backends: `ort`, `ort_cuda`, `openvino`, `tensorrt`, `cuda_select`, `eager_torch`
- parts of them: `ort_kv_cache`, `ort_batch`, `openvino_compiled`, `openvino_decoder`, `nvinfer`, `engine_profile`
- shared: `session`, `arrays`, `batching`, `device`, `gpu`, `language_inputs`
"""
