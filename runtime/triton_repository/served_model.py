"""The model behind Triton's Python backend: requests go to the engine loop, its events come back as responses."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BundleError, BusyError, EngineStoppedError, InvalidInputError, NemodiffError
from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.runtime.engine import EngineThread, Listener, TriModeEngine
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.options import IMPLEMENTED_MODES, GenerationOptions
from nemodiff_trt.runtime.planner import open_policy
from nemodiff_trt.runtime.sequence import FinishReason
from nemodiff_trt.runtime.triton_repository.fields import LOGPROBS_OUTPUT
from nemodiff_trt.runtime.triton_repository.parsed_request import RequestParser
from nemodiff_trt.runtime.triton_repository.response_stream import Backend, ResponseSender, ResponseStream
from nemodiff_trt.runtime.triton_repository.server_metrics import ServerMetrics
from nemodiff_trt.runtime.triton_repository.settings import ServingSettings
from nemodiff_trt.runtime.triton_repository.token_only import TokenOnly
from nemodiff_trt.runtime.triton_repository.variant import Variant
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import MODE_ROLES, Mode

_LOG = logging.getLogger(__name__)


class ServedModel:
    """One loaded model. `execute` returns at once; responses are sent from a thread of their own."""

    def __init__(self, backend: Backend, engine: TriModeEngine, settings: ServingSettings, labels: Mapping[str, str]) -> None:
        """Serve with `engine`, which belongs to this object from now on.

        Args:
            backend: Triton's utilities.
            engine: answers the requests.
            settings: see `ServingSettings`.
            labels: of every metric.
        """
        self._backend = backend
        self._parser = RequestParser(settings.variant)
        if settings.warm_up:
            warm_up(engine)
        self._metrics = ServerMetrics(backend, labels, engine.stats()) if settings.metrics_s else None
        self._engine = EngineThread(engine)
        self._sender = ResponseSender(backend, self._engine.cancel, self._note_end, settings.cancel_poll_s)
        self._is_closed = threading.Event()
        self._metrics_thread = threading.Thread(target=self._update_metrics, args=(settings.metrics_s,), daemon=True)
        if self._metrics is not None:
            self._metrics_thread.start()

    @classmethod
    def open(cls, backend: Backend, arguments: Mapping[str, str]) -> Self:
        """Load the bundle that `config.pbtxt` names.

        Args:
            backend: Triton's utilities.
            arguments: what Triton hands to `initialize`.

        Raises:
            BundleError: the bundle is damaged or cannot run here, or the server's NumPy is too new for it.
            InvalidInputError: a parameter of `config.pbtxt` is not usable.
        """
        check_tensors(backend)
        config = json.loads(arguments["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        settings = ServingSettings.from_parameters(parameters)
        folder = Path(arguments["model_repository"]) / arguments["model_version"]
        bundle = Bundle.open(folder / settings.bundle, verify=settings.verify)
        is_text = settings.variant is Variant.TEXT
        tokenizer = Tokenizer.from_dir(bundle.tokenizer_dir) if is_text else TokenOnly(settings.end_think_token_id)
        session = open_session(bundle, settings.num_threads)
        policy = open_policy(bundle.path, session)
        engine = TriModeEngine(session, tokenizer, settings.engine, policy=policy)
        return cls(backend, engine, settings, {"model": arguments["model_name"], "version": arguments["model_version"]})

    def execute(self, requests: Sequence[Any]) -> None:
        """Start answering `requests`."""
        for request in requests:
            wanted = frozenset(request.requested_output_names())
            sender = request.get_response_sender()
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                parsed = self._parser.parse(tensors, json.loads(request.parameters() or "{}"))
            except InvalidInputError as error:
                self._sender.open(sender, wanted, "prompt", is_streamed=True).fail(error)
                continue
            if parsed.options.sampling.logprobs is None:
                wanted -= {LOGPROBS_OUTPUT}
            stream = self._sender.open(sender, wanted, parsed.prompt_name, parsed.is_streamed)
            try:
                checked = self._engine.check(parsed.prompt, parsed.options)
            except InvalidInputError as error:
                # With the traceback it would hold this frame, and so the stream and its sender.
                stream.fail(error.with_traceback(None))
                continue
            listener = Listener(stream.add, stream.fail)
            stream.number = self._engine.submit(
                checked, parsed.options, listener, priority=parsed.priority, timeout_s=parsed.timeout_s
            )
            stream.number.add_done_callback(_report_refusal(stream))

    def close(self) -> None:
        """Answer what is there, refuse what comes, then stop."""
        if self._engine.is_alive:
            self._engine.drain()
        self._sender.wait_until_sent()
        self._is_closed.set()
        if self._metrics is not None:
            self._metrics_thread.join()
        self._engine.close()
        self._sender.close()

    def _note_end(self, _stream: ResponseStream, end: StreamEvent | NemodiffError) -> None:
        if self._metrics is None:
            return
        if isinstance(end, StreamEvent):
            if end.result is not None and end.result.finish_reason is not FinishReason.CANCELLED:
                self._metrics.observe(end.result)
        elif isinstance(end, InvalidInputError):
            self._metrics.refuse("invalid")
        else:
            self._metrics.refuse("busy" if isinstance(end, BusyError) else "stopped")

    def _update_metrics(self, period_s: float) -> None:
        assert self._metrics is not None, "the thread runs only with metrics"
        is_last = False
        while not is_last:
            is_last = self._is_closed.wait(period_s)
            try:
                self._metrics.update(self._engine.stats().result())
            except EngineStoppedError as error:
                _LOG.error("metrics end: %s", error)
                return


def _report_refusal(stream: ResponseStream) -> Any:
    def report(future: Any) -> None:
        error = future.exception()
        if error is not None:
            stream.fail(error)

    return report


def warm_up(engine: TriModeEngine) -> None:
    """Run every mode the engines were built for, alone and with all slots taken."""
    limits, roles = engine.session.limits, engine.session.roles
    # What auto chooses from is among the others.
    modes = [mode for mode in IMPLEMENTED_MODES if mode is not Mode.AUTO and roles.issuperset(MODE_ROLES[mode])]
    prompt = [engine.session.model.bos_token_id]
    for count in (1, engine.stats()["free_slots"]):
        for mode in modes:
            options = GenerationOptions(mode=mode, max_new_tokens=min(3, limits.max_seq_len - 1), ignore_eos=True)
            for _ in range(count):
                engine.submit(prompt, options, stream_text=False)
            while engine.has_work:
                engine.step()


def check_tensors(backend: Backend) -> None:
    """Refuse a backend that cannot read the arrays of the installed NumPy: it would send empty tensors without a word.

    Raises:
        BundleError: the two do not go together.
    """
    sent = np.arange(1, 4, dtype=np.int64)
    try:
        came = np.asarray(backend.Tensor("check", sent).as_numpy())
        is_equal = bool(np.array_equal(came, sent))
    except (TypeError, ValueError, RuntimeError):
        is_equal = False
    if not is_equal:
        raise BundleError(
            f"this server's Python backend cannot use NumPy {np.__version__}: install numpy<2 into the server's environment"
        )
