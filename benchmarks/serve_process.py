"""Start and stop `nemodiff serve` as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

# How the installed program starts, whatever is on the path.
PROGRAM = [sys.executable, "-c", "from nemodiff_trt.runtime.cli import main; main()"]
_STOP_S = 60.0


class ServeProcess:
    """One server; `with` starts it, waits until it takes connections, and stops it."""

    def __init__(self, bundle_dir: Path, *options: str, port: int = 0) -> None:
        """Prepare a server of a bundle with more `options` of the command; port 0 is a free one."""
        self.url = ""
        self.port = port
        self._options = ["serve", "--bundle", str(bundle_dir), "--json", *options]
        # Its log; a pipe that nobody reads would hold the server up once it is full.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as this object
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process

    def start(self) -> None:
        """Start the process.

        Raises:
            RuntimeError: it ended; the message is its log.
        """
        command = [*PROGRAM, *self._options, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self.process.wait()
            raise RuntimeError(f"no server: {self.read_log()}")
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=_STOP_S)

    def read_log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def metric(self, line: str) -> float:
        """Value of a metric, named as the text has it; 0 of one that is not there."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return next((float(found.rpartition(" ")[2]) for found in lines if found.rpartition(" ")[0] == line), 0.0)

    def resident_mb(self) -> float:
        """Memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self._log.close()
