from nemodiff_trt.plugins.attention.reference import attention as attention, attention_reference as attention_reference
