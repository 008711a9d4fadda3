"""The learned sampler: a small network that says which guesses of a denoising step will stay (arXiv 2607.05722, 3.2)."""

from nemodiff_trt.sampler.settings import SamplerSettings as SamplerSettings
