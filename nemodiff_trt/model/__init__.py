"""The eager model. Importing this package loads torch; building a decoder registers the operators."""

from nemodiff_trt.model.assembly import assemble_decoder as assemble_decoder
from nemodiff_trt.model.decoder import LayoutTensors as LayoutTensors
from nemodiff_trt.model.decoder import LowRankAdapter as LowRankAdapter
from nemodiff_trt.model.decoder import TriModeDecoder as TriModeDecoder
from nemodiff_trt.model.rotary_tables import build_rotary_tables as build_rotary_tables
