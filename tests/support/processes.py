"""Processes below another one, as Linux tells them."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes that `pid` or one of its descendants started, by process id."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name before the state may hold spaces and brackets.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: dict[int, str] = {}
    reached = {pid}
    while reached:
        reached = {child for child, parent in parents.items() if parent in reached and child in commands}
        found.update((child, commands[child]) for child in reached)
    return found
