"""Hand the autoregressive mode to other servers: a checkpoint as a Ministral3 folder. Importing this package loads torch."""

from nemodiff_trt.hf_export.export import ExportReport as ExportReport
from nemodiff_trt.hf_export.export import export_hf as export_hf
from nemodiff_trt.hf_export.quantized import LayerQuantization as LayerQuantization
from nemodiff_trt.hf_export.source import ExportSource as ExportSource
