"""What a user would run without this project: the name the benchmarks know it by."""

from nemodiff_trt.runtime.bench.reference_model import ReferenceModel

__all__ = ["ReferenceModel"]
