"""What the machine code of a kernel says about it: loads by width, spills, loops. Reads the listing of `cuobjdump -sass`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)\s*([^;]*);")
_USAGE = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")
_BITS = re.compile(r"\.[US]?(8|16|32|64|128|256)\b")


@dataclass(frozen=True, slots=True)
class MachineCode:
    """Facts of one compiled kernel.

    Attributes:
        instructions: number of them, padding left out.
        loads: width in bits -> number of instructions that load from global memory.
        spill_loads: instructions that read local memory.
        spill_stores: instructions that write it.
        has_loop: some branch goes back.
    """

    instructions: int
    loads: dict[int, int]
    spill_loads: int
    spill_stores: int
    has_loop: bool

    def loaded_bytes(self, num_threads: int) -> int | None:
        """Bytes a program asks global memory for when every thread runs every load; None where a loop decides how often."""
        if self.has_loop:
            return None
        return num_threads * sum(bits // 8 * count for bits, count in self.loads.items())

    def wide_share(self) -> float:
        """Share of the loaded bytes, by instruction, that comes in loads of 16 bytes or more."""
        total = sum(bits * count for bits, count in self.loads.items())
        return sum(bits * count for bits, count in self.loads.items() if bits >= 128) / total if total else 0.0


def read_sass(listing: str) -> MachineCode:
    """Parse a listing.

    Raises:
        ValueError: no instruction was found in it.
    """
    names: Counter[str] = Counter()
    loads: Counter[int] = Counter()
    has_loop = False
    for address, name, suffixes, operands in _INSTRUCTION.findall(listing):
        names[name] += 1
        if name == "LDG":
            width = _BITS.search(suffixes)
            loads[int(width.group(1)) if width else 32] += 1
        if name == "BRA":
            target = re.search(r"0x([0-9a-f]+)", operands)
            # A branch to itself is what follows the end of every kernel.
            has_loop |= target is not None and int(target.group(1), 16) < int(address, 16)
    if not names:
        raise ValueError("no instruction in the listing")
    del names["NOP"]
    return MachineCode(sum(names.values()), dict(sorted(loads.items())), names["LDL"], names["STL"], has_loop)


def read_usage(listing: str) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the listing of `cuobjdump --dump-resource-usage`; the last kernel counts.

    Raises:
        ValueError: one of them is missing.
    """
    found = {name: int(value) for name, value in _USAGE.findall(listing)}
    if found.keys() != {"REG", "STACK", "SHARED", "LOCAL"}:
        raise ValueError(f"no resource usage in {listing!r}")
    return found
