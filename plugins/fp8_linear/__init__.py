from nemodiff_trt.plugins.fp8_linear.reference import fp8_linear as fp8_linear
from nemodiff_trt.plugins.fp8_linear.reference import fp8_linear_reference as fp8_linear_reference
