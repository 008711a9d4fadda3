"""What is published of the GPUs that kernels are compiled for, and the least time an operator could take on one of them."""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.plugins.triton_build import Traffic


@dataclass(frozen=True, slots=True)
class Gpu:
    """One product of a compute capability: peak memory bandwidth, peak dense bf16 rate, shared memory a program may use."""

    name: str
    gigabytes_per_s: float
    teraflops: float
    shared_bytes: int


# Compute capability without the dot -> GPU. Vendor's data sheets.
GPUS: dict[int, Gpu] = {
    90: Gpu("H100 SXM", 3350, 989, 232_448),
    100: Gpu("B200", 8000, 2250, 232_448),
    120: Gpu("RTX PRO 6000 Blackwell", 1792, 503, 101_376),
    121: Gpu("DGX Spark (GB10)", 273, 125, 101_376),
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """A lower bound from a roofline, not a measurement: launches and latencies come on top."""

    gpu: str
    microseconds: float
    limited_by: str


def predict(traffic: Traffic, gpu: Gpu) -> Prediction:
    """Time that memory and arithmetic at their peaks would need for `traffic`."""
    memory = traffic.moved / (gpu.gigabytes_per_s * 1e3)
    arithmetic = traffic.operations / (gpu.teraflops * 1e6)
    return Prediction(gpu.name, max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic")
