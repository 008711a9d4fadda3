"""What a deployment would do with a trace of requests: the engine loop on step times in place of engines."""

from nemodiff_trt.runtime.simulator.acceptance import AcceptanceProfile as AcceptanceProfile
from nemodiff_trt.runtime.simulator.acceptance import read_acceptance as read_acceptance
from nemodiff_trt.runtime.simulator.deployment import Deployment as Deployment
from nemodiff_trt.runtime.simulator.deployment import simulate as simulate
from nemodiff_trt.runtime.simulator.outcome import Outcome as Outcome
from nemodiff_trt.runtime.simulator.outcome import summarize as summarize
from nemodiff_trt.runtime.simulator.replica import LoopCost as LoopCost
from nemodiff_trt.runtime.simulator.trace import TraceRequest as TraceRequest
from nemodiff_trt.runtime.simulator.trace import poisson_trace as poisson_trace
from nemodiff_trt.runtime.simulator.trace import read_trace as read_trace
