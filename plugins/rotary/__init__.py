from nemodiff_trt.plugins.rotary.reference import rotary as rotary
from nemodiff_trt.plugins.rotary.reference import rotary_reference as rotary_reference
