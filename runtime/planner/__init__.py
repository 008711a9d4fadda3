"""Which mode and block length pay now: step times, acceptance, and the choice between them."""

from nemodiff_trt.runtime.planner.acceptance import AcceptanceModel as AcceptanceModel
from nemodiff_trt.runtime.planner.latency_model import LatencyModel as LatencyModel
from nemodiff_trt.runtime.planner.latency_model import Step as Step
from nemodiff_trt.runtime.planner.latency_model import StepTime as StepTime
from nemodiff_trt.runtime.planner.open_policy import open_policy as open_policy
from nemodiff_trt.runtime.planner.planned_request import Choice as Choice
from nemodiff_trt.runtime.planner.planned_request import PlannedRequest as PlannedRequest
from nemodiff_trt.runtime.planner.policy import Policy as Policy
