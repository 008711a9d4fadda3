"""In-flight batching: requests of any mode join, decode together and leave at any time."""

from nemodiff_trt.runtime.engine.async_engine import AsyncTriModeEngine as AsyncTriModeEngine
from nemodiff_trt.runtime.engine.engine_thread import EngineThread as EngineThread
from nemodiff_trt.runtime.engine.engine_thread import Listener as Listener
from nemodiff_trt.runtime.engine.options import EngineOptions as EngineOptions
from nemodiff_trt.runtime.engine.token_engine import TokenEngine as TokenEngine
from nemodiff_trt.runtime.engine.tri_mode_engine import EngineEvent as EngineEvent
from nemodiff_trt.runtime.engine.tri_mode_engine import TriModeEngine as TriModeEngine
