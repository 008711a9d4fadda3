"""Step graph -> ONNX opset 24, by a table of converters."""

from nemodiff_trt.build_engines.lowering.lower import lower_to_onnx as lower_to_onnx
