from nemodiff_trt.plugins.attention.reference import attend_visible as attend_visible
from nemodiff_trt.plugins.attention.reference import attention as attention
from nemodiff_trt.plugins.attention.reference import attention_reference as attention_reference
from nemodiff_trt.plugins.attention.reference import longest_used as longest_used
from nemodiff_trt.plugins.attention.reference import visible_slots as visible_slots
