from nemodiff_trt.plugins.rotary.reference import rotary as rotary, rotary_reference as rotary_reference
