from nemodiff_trt.plugins.attention.reference import attention as attention
from nemodiff_trt.plugins.attention.reference import attention_reference as attention_reference
