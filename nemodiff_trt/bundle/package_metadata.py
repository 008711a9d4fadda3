"""What the compiler writes into the metadata of an AOTInductor package and the session reads: names, separated by blanks.

The inputs are those of the step contract and then the stored tensors to bind; outputs are those that are not written in place.
"""

from __future__ import annotations

INPUTS_KEY = "nemodiff_inputs"
OUTPUTS_KEY = "nemodiff_outputs"
