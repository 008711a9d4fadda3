"""Open a bundle for a server."""

from __future__ import annotations

from pathlib import Path

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.planner import open_policy
from nemodiff_trt.runtime.server.served_model import ServedModel
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Objective


def open_engine(
    bundle_dir: Path,
    options: EngineOptions,
    num_threads: int | None,
    verify: bool,
    objective: Objective | None = None,
    sampler: Path | None = None,
) -> tuple[TriModeEngine, ServedModel]:
    """Engine of the bundle, which plans mode `auto` by the step times beside it where these were measured; and its facts.

    Raises:
        BundleError: a file is missing, altered or unknown, or nothing here runs the bundle's target.
        InvalidInputError: an option or the sampler is not usable with this bundle.
    """
    bundle = Bundle.open(bundle_dir, verify=verify)
    session = open_session(bundle, num_threads)
    policy = open_policy(bundle.path, session, objective)
    learned = None if sampler is None else LearnedSampler.open(sampler)
    engine = TriModeEngine(session, Tokenizer.from_dir(bundle.tokenizer_dir), options, policy=policy, sampler=learned)
    return engine, ServedModel.of(engine, bundle.manifest.build_key, can_plan=policy is not None)
