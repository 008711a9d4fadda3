"""Instruction sets of a CPU, for engines that are machine code of the machine that built them."""

from __future__ import annotations


def cpu_features() -> tuple[str, ...]:
    """Architecture of this CPU, then its instruction sets by torch's names, sorted."""
    import torch

    found = torch.cpu.get_capabilities()
    # The rest are a name and sizes, which no program depends on.
    return (str(found["architecture"]), *sorted(name for name, value in found.items() if value is True))


def missing_features(wanted: str) -> tuple[str, ...]:
    """What of `wanted`, names of `cpu_features` separated by blanks, this CPU lacks."""
    present = set(cpu_features())
    return tuple(name for name in wanted.split() if name not in present)
