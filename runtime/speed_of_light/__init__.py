"""How few denoise steps could reach what serial denoising reaches: the speed of light of arXiv 2607.05722, section 4."""

from nemodiff_trt.runtime.speed_of_light.compaction import Compaction as Compaction
from nemodiff_trt.runtime.speed_of_light.compaction import compact as compact
from nemodiff_trt.runtime.speed_of_light.greedy import GreedyBound as GreedyBound
from nemodiff_trt.runtime.speed_of_light.greedy import greedy_bound as greedy_bound
from nemodiff_trt.runtime.speed_of_light.serial import Denoise as Denoise
from nemodiff_trt.runtime.speed_of_light.serial import SerialTrajectory as SerialTrajectory
from nemodiff_trt.runtime.speed_of_light.serial import serial_denoise as serial_denoise
