from nemodiff_trt.plugins.rms_norm.reference import rms_norm as rms_norm
from nemodiff_trt.plugins.rms_norm.reference import rms_norm_reference as rms_norm_reference
