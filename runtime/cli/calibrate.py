"""`nemodiff calibrate`: measure the steps of a bundle on this device, which mode `auto` chooses by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.runtime.cli.options import AsJson, BundleDir, NumThreads

# Of the CPU time, that times of the device may hold without a word.
_LITTLE_WORK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateArguments:
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    num_repeats: Annotated[
        int, typer.Option("--num-repeats", metavar="N", min=1, help="Rounds; a cycle of middling time has a turn in each.")
    ] = 8
    as_json: AsJson = False
    num_threads: NumThreads = None


def calibrate(arguments: CalibrateArguments) -> int:
    """Measure how long steps take here, and cycles in a loop, and write the result beside the bundle, for mode auto."""
    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.runtime.cli.output import notes, write_json
    from nemodiff_trt.runtime.open_session import open_session
    from nemodiff_trt.runtime.planner import LatencyModel
    from nemodiff_trt.runtime.planner.calibrate import device_name, held_out_error, measure_steps
    from nemodiff_trt.runtime.planner.calibrate_loop import measure_loop
    from nemodiff_trt.runtime.planner.latency_model import latency_file
    from nemodiff_trt.runtime.planner.other_work import CpuTimes, share_of_others
    from nemodiff_trt.tokenizer import Tokenizer

    bundle = Bundle.open(arguments.bundle)
    session = open_session(bundle, arguments.num_threads)
    begin = CpuTimes.now()
    times = measure_steps(session, arguments.num_repeats)
    device = device_name(bundle.manifest.target)
    model, error = LatencyModel.calibrate(device, times), held_out_error(device, times)
    loop = measure_loop(session, Tokenizer.from_dir(bundle.tokenizer_dir), model, arguments.num_repeats)
    others = share_of_others(begin, CpuTimes.now())
    num_cycles = sum(map(len, loop.values()))
    path = latency_file(bundle.path)
    with replaced_file(path) as partial:
        partial.write_bytes(replace(model, loop=loop).to_bytes())
    if others is not None and others > _LITTLE_WORK:
        notes().print(f"other work took {others:.0%} of the CPUs meanwhile, and the times hold it; calibrate again without it")
    if arguments.as_json:
        counts = {"num_steps": len(times), "num_cycles": num_cycles}
        write_json({"file": str(path), "device": device, **counts, "held_out_median_error": error, "other_work": others})
    else:
        measured = f"{len(times)} steps and {num_cycles} cycles of a loop on {device}"
        typer.echo(f"{measured}, median error on steps left out {error:.1%}: {path}")
    return 0
