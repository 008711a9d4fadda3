"""Read and write checkpoint folders of the published layout. Importing this package loads torch."""

from nemodiff_trt.checkpoint.adapter import AdapterSettings as AdapterSettings
from nemodiff_trt.checkpoint.adapter import DraftAdapter as DraftAdapter
from nemodiff_trt.checkpoint.packaged import PACKAGED_CHECKPOINTS as PACKAGED_CHECKPOINTS
from nemodiff_trt.checkpoint.packaged import resolve_checkpoint as resolve_checkpoint
from nemodiff_trt.checkpoint.reader import Checkpoint as Checkpoint
from nemodiff_trt.checkpoint.writer import write_checkpoint as write_checkpoint
