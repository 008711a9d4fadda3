"""Sampling on the host: which token, given the logits of a step. numpy only."""

from nemodiff_trt.runtime.sampling.acceptance import accept_by_rejection as accept_by_rejection
from nemodiff_trt.runtime.sampling.acceptance import accept_coupled as accept_coupled
from nemodiff_trt.runtime.sampling.acceptance import draft_for_rejection as draft_for_rejection
from nemodiff_trt.runtime.sampling.acceptance import verify_by_rejection as verify_by_rejection
from nemodiff_trt.runtime.sampling.chooser import TokenChooser as TokenChooser
from nemodiff_trt.runtime.sampling.logprobs import TokenLogprobs as TokenLogprobs
from nemodiff_trt.runtime.sampling.logprobs import token_confidence as token_confidence
from nemodiff_trt.runtime.sampling.logprobs import token_logprobs as token_logprobs
from nemodiff_trt.runtime.sampling.options import Acceptance as Acceptance
from nemodiff_trt.runtime.sampling.options import SamplingOptions as SamplingOptions
from nemodiff_trt.runtime.sampling.workspace import SamplingWorkspace as SamplingWorkspace
