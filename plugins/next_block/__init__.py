from nemodiff_trt.plugins.next_block.reference import next_block as next_block
from nemodiff_trt.plugins.next_block.reference import next_block_reference as next_block_reference
