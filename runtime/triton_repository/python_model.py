"""Model of Triton's Python backend for a bundle of nemodiff_trt, which must be installed where the server's Python finds it.

Decoding is that of the engine loop; nothing of it is here. Settings are parameters of `config.pbtxt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from nemodiff_trt.runtime.triton_repository.served_model import ServedModel


class TritonPythonModel:
    """What Triton calls; see its documentation of the Python backend."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle and warm it up. An error here keeps the version that is loaded, if there is one."""
        self.served = ServedModel.open(pb_utils, args)

    def execute(self, requests: Sequence[Any]) -> None:
        """Start answering; responses follow through the senders of the requests."""
        self.served.execute(requests)

    def finalize(self) -> None:
        """Answer what is left, then free everything."""
        self.served.close()
