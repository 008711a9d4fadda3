"""Start and stop the real Triton Inference Server of the wheel nvidia-pytriton, in the environment `make triton-env` makes.

    python benchmarks/triton_server.py --repository REPO [--env build/triton-env] [--port 8000] [more options of tritonserver]

runs it in the foreground. The server's Python backend predates NumPy 2, which is why the environment is its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

DEFAULT_ENVIRONMENT = Path(__file__).parent.parent / "build" / "triton-env"
HOST = "127.0.0.1"
_START_S = 120.0
_STOP_S = 60.0


def is_available(environment: Path) -> bool:
    """Whether `environment` has a server."""
    return bool(list(environment.glob("lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver")))


def free_port() -> int:
    """A port with two free ones behind it, for HTTP, gRPC and metrics."""
    while True:
        with socket.socket() as first:
            first.bind((HOST, 0))
            port = int(first.getsockname()[1])
        try:
            for offset in range(3):
                with socket.socket() as other:
                    other.bind((HOST, port + offset))
        except (OSError, OverflowError):
            continue
        return port


class TritonServer:
    """One server process; `with` starts it, waits until it is live and stops it."""

    def __init__(self, repository: Path, environment: Path = DEFAULT_ENVIRONMENT, models: tuple[str, ...] = ()) -> None:
        """Prepare a server of `repository`; with `models`, only these are loaded, and others on demand."""
        self.repository = repository
        self.environment = environment.absolute()
        self.port = free_port()
        self.models = models
        self._folder = tempfile.TemporaryDirectory()
        self.log_path = Path(self._folder.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.port + 1}"

    def start(self) -> None:
        """Start the process and wait until all models are ready.

        Raises:
            RuntimeError: it ended, or is not ready in time; the message has the end of its log.
        """
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), env=self.environment_variables(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        until = time.monotonic() + _START_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"no server: {self.log()[-2000:]}")
            time.sleep(0.1)

    def command(self) -> list[str]:
        site = self._site_packages()
        ports = {"http": self.port, "grpc": self.port + 1, "metrics": self.port + 2}
        addresses = [
            f"--{name}-{kind}={value}" for name, port in ports.items() for kind, value in (("address", HOST), ("port", port))
        ]
        control = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self.models)] if self.models else []
        return [
            str(site / "pytriton/tritonserver/bin/tritonserver"),
            f"--model-repository={self.repository.absolute()}",
            f"--backend-directory={self._backends(site)}",
            # Only the process itself is asked for: nothing here needs the GPU's counters.
            "--allow-gpu-metrics=false",
            *addresses,
            *control,
        ]

    def stop(self) -> None:
        """Ask the server to end, which answers what is in flight first."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """End the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def is_ready(self, model: str | None = None) -> bool:
        path = "v2/health/ready" if model is None else f"v2/models/{model}/ready"
        try:
            with urllib.request.urlopen(f"http://{self.http}/{path}", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def load(self, model: str) -> str | None:
        """Load or reload a model; returns the server's error, None where there is none.

        Over gRPC: a load over HTTP blocks one of the server's HTTP threads, and streams on that thread lose their end.
        """
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        with InferenceServerClient(self.grpc) as client:
            try:
                client.load_model(model)
            except InferenceServerException as error:
                return str(error.message())
        return None

    def metrics(self) -> dict[str, float]:
        """Every metric of ours by its line without the value, such as `nemodiff_free_slots{model="m",version="1"}`."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port + 2}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith("nemodiff_")]
        return {name: float(value) for name, _, value in found}

    def gauge(self, name: str) -> float:
        """Sum of a metric over its labels, -1 where it does not exist."""
        values = [value for key, value in self.metrics().items() if key.partition("{")[0] == f"nemodiff_{name}"]
        return sum(values) if values else -1.0

    def memory_bytes(self) -> int:
        """Resident memory of the server and of all processes it started."""
        return sum(_resident_bytes(number) for number in self.processes())

    def processes(self) -> list[int]:
        """Numbers of the server's process and its children."""
        if self._process is None:
            return []
        own = self._process.pid
        children = Path(f"/proc/{own}/task")
        found = [own]
        for task in children.glob("*/children"):
            found += [int(number) for number in task.read_text().split()]
        return found

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._folder.cleanup()

    def _site_packages(self) -> Path:
        return next(self.environment.glob("lib/python3.*/site-packages"))

    def _backends(self, site: Path) -> Path:
        """The Python backend with the stub of this interpreter, put together as the server wants it."""
        folder = Path(self._folder.name) / "backends" / "python"
        if not folder.exists():
            shutil.copytree(site / "pytriton/tritonserver/backends/python", folder)
            version = site.parent.name.removeprefix("python")
            shutil.copy(site / "pytriton/tritonserver/python_backend_stubs" / version / "triton_python_backend_stub", folder)
        return folder.parent

    def environment_variables(self) -> dict[str, str]:
        site = self._site_packages()
        asked = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
        library = subprocess.run(
            [str(self.environment / "bin/python"), "-c", asked], capture_output=True, text=True, check=True
        ).stdout.strip()
        # The stub takes the python3 it finds on PATH, whatever PYTHONPATH says.
        return os.environ | {
            "PATH": f"{self.environment / 'bin'}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{library}",
        }


def _resident_bytes(number: int) -> int:
    """Memory of a process that is its own: pages of mapped weight files are left out, they are the system's cache."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    values = {name: text for name, _, text in (line.partition(":") for line in lines)}
    return sum(int(values[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in values)


def make_repository(bundle: Path, output: Path, *options: Any) -> Path:
    """Write a model repository through the command line, as a user would.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    arguments = ["triton-repo", "--bundle", str(bundle), "--output", str(output), *map(str, options), "--json"]
    subprocess.run(
        [sys.executable, "-c", "import sys; from nemodiff_trt.runtime.cli import main; sys.exit(main())", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--env", type=Path, default=DEFAULT_ENVIRONMENT)
    parser.add_argument("--port", type=int, default=8000, help="of HTTP; gRPC and metrics take the two behind it")
    arguments, more = parser.parse_known_args()
    if not is_available(arguments.env):
        parser.error(f"{arguments.env} has no server: run `make triton-env`")
    server = TritonServer(arguments.repository, arguments.env)
    server.port = arguments.port
    process = subprocess.Popen([*server.command(), *more], env=server.environment_variables())
    try:
        sys.exit(process.wait())
    except KeyboardInterrupt:
        process.wait()


if __name__ == "__main__":
    main()
