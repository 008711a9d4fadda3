"""What is published of the GPUs that kernels are compiled for, and the least time an operator could take on one of them."""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.plugins.triton_build import Traffic


@dataclass(frozen=True, slots=True)
class Gpu:
    """One product: peak memory bandwidth, peak dense rates with fp32 sums, shared memory a program may use.

    `teraflops` is the rate of bf16; None stands for a format without tensor cores of its own.
    """

    name: str
    gigabytes_per_s: float
    teraflops: float
    shared_bytes: int
    fp8_teraflops: float | None = None
    fp4_teraflops: float | None = None


# Peak rates as the vendor states them, dense: half of those with sparsity. RTX 5090: with fp32 sums, half of those with
# fp16 sums. DGX Spark states FP4 only; its other rates are halvings of that.
PRODUCTS: dict[str, Gpu] = {
    "h100": Gpu("H100 SXM", 3350, 989, 232_448, 1979),
    "b200": Gpu("B200", 8000, 2250, 232_448, 4500, 9000),
    "rtx-pro-6000": Gpu("RTX PRO 6000 Blackwell", 1792, 503, 101_376, 1007, 2015),
    "rtx-5090": Gpu("GeForce RTX 5090", 1792, 209.5, 101_376, 419, 1676),
    "dgx-spark": Gpu("DGX Spark (GB10)", 273, 125, 101_376, 250, 500),
}
# Compute capability without the dot -> the product that predictions for it are about.
GPUS: dict[int, Gpu] = {
    90: PRODUCTS["h100"],
    100: PRODUCTS["b200"],
    120: PRODUCTS["rtx-pro-6000"],
    121: PRODUCTS["dgx-spark"],
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
