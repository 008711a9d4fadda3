"""Public members of the classes of full TensorRT that sessions use, as the package tensorrt-stubs 10.13.0.35.1 lists them.

That package depends on `tensorrt`, which cannot be installed everywhere, and its stubs are no valid Python, so neither pip nor
mypy can take it as it is. It is the newest there is, and older than the layer that updates a cache in place.
"""

from __future__ import annotations

MEMBERS: dict[str, frozenset[str]] = {
    "ICudaEngine": frozenset(
        (
            "create_engine_inspector create_execution_context create_execution_context_without_device_memory "
            "create_runtime_config create_serialization_config device_memory_size device_memory_size_v2 engine_capability "
            "error_recorder get_device_memory_size_for_profile get_device_memory_size_for_profile_v2 "
            "get_tensor_bytes_per_component get_tensor_components_per_element get_tensor_dtype get_tensor_format "
            "get_tensor_format_desc get_tensor_location get_tensor_mode get_tensor_name get_tensor_profile_shape "
            "get_tensor_profile_values get_tensor_shape get_tensor_vectorized_dim get_weight_streaming_automatic_budget "
            "hardware_compatibility_level has_implicit_batch_dimension is_debug_tensor is_shape_inference_io "
            "minimum_weight_streaming_budget name num_aux_streams num_io_tensors num_layers num_optimization_profiles "
            "profiling_verbosity refittable serialize serialize_with_config streamable_weights_size tactic_sources "
            "weight_streaming_budget weight_streaming_budget_v2 weight_streaming_scratch_memory_size"
        ).split()
    ),
    "IExecutionContext": frozenset(
        (
            "active_optimization_profile all_binding_shapes_specified all_shape_inputs_specified debug_sync engine "
            "enqueue_emits_profile error_recorder execute_async_v3 execute_v2 get_debug_listener get_debug_state "
            "get_input_consumed_event get_max_output_size get_output_allocator get_runtime_config get_tensor_address "
            "get_tensor_shape get_tensor_strides infer_shapes name nvtx_verbosity persistent_cache_limit profiler "
            "report_to_profiler set_all_tensors_debug_state set_aux_streams set_debug_listener set_device_memory "
            "set_input_consumed_event set_input_shape set_optimization_profile_async set_output_allocator "
            "set_tensor_address set_tensor_debug_state temporary_allocator unfused_tensors_debug_state "
            "update_device_memory_size_for_shapes"
        ).split()
    ),
    "IRuntimeConfig": frozenset("get_execution_context_allocation_strategy set_execution_context_allocation_strategy".split()),
    "Runtime": frozenset(
        (
            "DLA_core deserialize_cuda_engine engine_host_code_allowed error_recorder get_plugin_registry load_runtime "
            "logger max_threads num_DLA_cores tempfile_control_flags temporary_directory"
        ).split()
    ),
    "ILogger": frozenset("ERROR INFO INTERNAL_ERROR VERBOSE WARNING log".split()),
    "ExecutionContextAllocationStrategy": frozenset("ON_PROFILE_CHANGE STATIC USER_MANAGED name value".split()),
    "TensorIOMode": frozenset("INPUT NONE OUTPUT name value".split()),
}
