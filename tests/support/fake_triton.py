"""Stands in for `triton_python_backend_utils`: requests, tensors, senders and metrics, all in this process."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "internal", "invalid", "unavailable", "cancelled"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.values = {tensor.name(): tensor.as_numpy().tolist() for tensor in output_tensors}
        self.error = error


class Metric:
    def __init__(self, buckets: list[float] | None) -> None:
        self.value, self.observed, self.buckets = 0.0, [], buckets  # type: ignore[var-annotated]

    def increment(self, value: float) -> None:
        assert value >= 0
        self.value += value

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class Sender:
    """Collects responses; `is_left` plays a client that has gone."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_left = False
        self.done = threading.Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.done.is_set(), "a response after the last"
        if response is not None:
            self.responses.append(response)
        if flags == FakeBackend.TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self.is_left

    def wait(self) -> Sender:
        assert self.done.wait(timeout=20), "no last response"
        return self

    @property
    def error(self) -> TritonError:
        error = self.wait().responses[-1].error
        assert error is not None, self.responses[-1].values
        return error

    @property
    def text(self) -> str:
        return b"".join(response.values["text_output"][0] for response in self.wait().responses).decode()

    @property
    def token_ids(self) -> list[int]:
        return [token for response in self.wait().responses for token in response.values["token_ids"]]

    @property
    def stats(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.wait().responses[-1].values["stats"][0])
        return content


class Request:
    def __init__(self, tensors: dict[str, Any], outputs: list[str], parameters: dict[str, Any] | None = None) -> None:
        self.sender = Sender()
        self._tensors = [Tensor(name, as_tensor(value)) for name, value in tensors.items()]
        self._outputs, self._parameters = outputs, parameters or {}

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def get_response_sender(self) -> Sender:
        return self.sender


def as_tensor(value: Any) -> np.ndarray:
    """As the server would hand it over: strings are bytes, everything is a vector."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    items = [item.encode() if isinstance(item, str) else item for item in items]
    return np.array(items, np.object_ if items and isinstance(items[0], bytes) else None)


class FakeBackend:
    """The utilities; metrics are kept by family and labels, as the server keeps them over a reload."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    Tensor, TritonError, InferenceResponse = Tensor, TritonError, InferenceResponse

    def __init__(self) -> None:
        self.metrics: dict[tuple[str, frozenset[tuple[str, str]]], Metric] = {}
        metrics = self.metrics

        class MetricFamily:
            COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert description
                self.name, self.kind = name, kind

            def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
                return metrics.setdefault((self.name, frozenset(labels.items())), Metric(buckets))

        self.MetricFamily = MetricFamily

    def total(self, name: str, **labels: str) -> float:
        return sum(
            metric.value
            for (family, found), metric in self.metrics.items()
            if family == f"nemodiff_{name}" and labels.items() <= dict(found).items()
        )
