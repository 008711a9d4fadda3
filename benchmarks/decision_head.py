"""What deciding costs on a CPU: the ONNX form of `decision_head` as a share of the decode step it is part of.

The operator is timed as an engine of its own, on logits of the model's vocabulary. An engine that does nothing takes its turn
with the others: that is what a call of ONNX Runtime costs, and it is taken off. The last line is one JSON object; the exit code
is 1 when the share exceeds the target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from bundles import build
from measure import Target, hardware, interleaved, median_ms, versions
from onnx import TensorProto, helper
from step_times import USED_TOKENS, step_cases

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.plugins import Form, find_op
from nemodiff_trt.plugins.onnx_emitter import OPSET, OnnxEmitter
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.vocabulary import Role

LARGEST_SHARE = 0.1
DECODE, HEAD, NOTHING = "decode", "decision_head", "nothing"


def head_engine(
    vocab_size: int, mask_token_id: int, num_threads: int, is_empty: bool = False
) -> Callable[[np.ndarray], object]:
    """`decision_head` on logits [B,S,V] as an engine of its own, or an engine that only takes them."""
    emit = OnnxEmitter()
    shape = ("B", "S", vocab_size)
    emit.declare("logits", "float32", shape)
    names = (
        [emit.op("Shape", ["logits"])] if is_empty else find_op("decision_head").load(Form.ONNX)(emit, "logits", mask_token_id)
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    graph = helper.make_graph(emit.nodes, "head", [logits], outputs, emit.constants)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda values: session.run(None, {"logits": values})


def share_of_head(session: OnnxRuntimeSession, batch: int, num_threads: int, num_repeats: int) -> dict[str, Any]:
    """Milliseconds of a decode step and of its decision, and their ratio."""
    model = session.model
    logits = np.random.default_rng(1).standard_normal((batch, 1, model.vocab_size)).astype(np.float32)
    decode = step_cases(session, [(Role.DECODE, 1, batch)], USED_TOKENS)
    engines = {
        name: head_engine(model.vocab_size, model.mask_token_id, num_threads, is_empty)
        for name, is_empty in ((HEAD, False), (NOTHING, True))
    }
    cases: dict[str, Callable[[], object]] = {DECODE: next(iter(decode.values()))}
    cases |= {name: lambda engine=engine: engine(logits) for name, engine in engines.items()}
    seconds = interleaved(cases, num_repeats, num_warmup=20)
    rounds = zip(seconds[HEAD], seconds[NOTHING], seconds[DECODE], strict=True)
    share = statistics.median((head - nothing) / step for head, nothing, step in rounds)
    return {"batch": batch, **{f"{name}_ms": median_ms(times) for name, times in seconds.items()}, "share": share}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nemodiff-tiny", help="folder or name of a packaged checkpoint")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--num-repeats", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(arguments.checkpoint, Path(folder) / "bundle", max_seq_len=512, block_length=16)
        session = OnnxRuntimeSession.open(Bundle.open(Path(folder) / "bundle"), arguments.num_threads)
        rows = [share_of_head(session, batch, arguments.num_threads, arguments.num_repeats) for batch in (1, 8)]
        for row in rows:
            print(
                f"batch {row['batch']}: decode step {row['decode_ms']:.3f} ms, decision {row['decision_head_ms']:.4f} ms,"
                f" call alone {row['nothing_ms']:.4f} ms, share {row['share']:.1%}"
            )
        target = Target(max(row["share"] for row in rows), at_most=LARGEST_SHARE)
        vocab_size = session.model.vocab_size
    content = {"decision_head": rows, "vocab_size": vocab_size, "targets": {"decision_head_share": target.to_dict()}}
    print(json.dumps({**content, "hardware": hardware(arguments.num_threads), "versions": versions()}))
    return 0 if target.is_met else 1


if __name__ == "__main__":
    sys.exit(main())
