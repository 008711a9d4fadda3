"""One capture of the tiny decoder, and a ragged step of it in float64."""

from __future__ import annotations

import pytest
import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.passes.graph import StepGraph
from support.checkpoints import random_decoder, tiny_config
from support.graphs import CACHE_CAPACITY
from support.steps import EagerStep


@pytest.fixture(scope="session")
def _capture() -> StepGraph:
    return capture_step(tiny_config(), torch.float32, CACHE_CAPACITY)


@pytest.fixture
def captured(_capture: StepGraph) -> StepGraph:
    """The captured step: causal, no adapter, logits as its only decision. A copy for each test."""
    return _capture.copy()


@pytest.fixture(scope="session")
def eager_step() -> EagerStep:
    """Cached lengths reach beyond position 32, where the query scale of the tiny model starts."""
    decoder = random_decoder(tiny_config(), CACHE_CAPACITY).double()
    return EagerStep.random(decoder, lengths=(0, 40, 3), num_tokens=5, capacity=CACHE_CAPACITY)
