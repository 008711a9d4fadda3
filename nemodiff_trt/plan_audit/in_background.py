"""Audits in processes of their own, while the compiler works. A thread beside it in one process gains nothing."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from nemodiff_trt.errors import AuditError
from nemodiff_trt.plan_audit.audit import audit_file
from nemodiff_trt.plan_audit.facts import StepFacts
from nemodiff_trt.plan_audit.report import PlanAudit


class BackgroundAudits:
    """Audits of plan files. On leaving, whatever still runs is stopped."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="nemodiff-audit-")
        self._running: dict[Path, tuple[subprocess.Popen[bytes], Path]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for process, _ in self._running.values():
            process.kill()
            process.communicate()
        self._folder.cleanup()

    def start(self, plan: Path, facts: StepFacts) -> None:
        """Audit a file that does not change any more. No two that run have one name."""
        result, job = (Path(self._folder.name) / f"{plan.name}.{kind}" for kind in ("result", "job"))
        job.write_bytes(pickle.dumps((plan, facts, result)))
        command = [sys.executable, "-m", __name__, str(job)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._running[plan] = process, result

    def result(self, plan: Path) -> PlanAudit:
        """Wait for the audit of a plan that was started, and forget it.

        Raises:
            AuditError: the process failed; its last line is given.
        """
        process, result = self._running.pop(plan)
        _, messages = process.communicate()
        if process.returncode:
            last = messages.decode(errors="replace").strip().rpartition("\n")[2]
            raise AuditError(f"the audit of {plan.name} ended with code {process.returncode}: {last}")
        found = pickle.loads(result.read_bytes())
        assert isinstance(found, PlanAudit), "what the process writes"
        return found


def main() -> None:
    """The process: do the job that is named on the command line."""
    plan, facts, result = pickle.loads(Path(sys.argv[1]).read_bytes())
    result.write_bytes(pickle.dumps(audit_file(plan, facts)))


if __name__ == "__main__":
    main()
