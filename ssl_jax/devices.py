"""Properties of devices: peak FLOP/s, memory size, bandwidths, and the memory in use."""

import dataclasses
import functools
import os
import pathlib
import platform
import re
import sys
import time
from typing import Any

# Dense peaks in TFLOP/s of one JAX device, first match on the lower-case device kind: (kind, {dtype: TFLOP/s}). "float32"
# is the rate of a float32 matmul at JAX's default precision: one bfloat16 pass on a TPU, TF32 on a GPU that has it.
# Tensor-core figures count float32 accumulation and no sparsity (half of what a data sheet gives "with sparsity").
# Sources: cloud.google.com/tpu/docs/system-architecture-tpu-vm (a device is a core of v2, v3 and 7x, else a chip);
# NVIDIA's data sheets of V100, T4, A100, L4, L40S, H100, H200, GH200, HGX B200; NVIDIA's architecture white papers on
# GA102, AD102 and Blackwell RTX for GeForce; AMD's data sheet of MI300X.
_TPU = lambda tflops: {"bfloat16": tflops, "float32": tflops}
_GPU = lambda half, single: {"bfloat16": half, "float16": half, "float32": single}
PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"\bmig\b", {}),  # a slice of a card
    (r"^tpu v2$", _TPU(22.5)),
    (r"^tpu v3$", _TPU(61.5)),
    (r"^tpu v4 lite$", _TPU(138.0)),
    (r"^tpu v4$", _TPU(275.0)),
    (r"^tpu v5 lite$|^tpu v5e$", _TPU(197.0)),
    (r"^tpu v5p?$", _TPU(459.0)),
    (r"^tpu v6 lite$|^tpu v6e$", _TPU(918.0)),
    (r"^tpu7x?$", _TPU(1153.5)),
    (r"\bv100-sxm", {"float16": 125.0, "float32": 15.7}),
    (r"\bv100-pcie", {"float16": 112.0, "float32": 14.0}),
    (r"\bt4$", {"float16": 65.0, "float32": 8.1}),
    (r"\ba100", _GPU(312.0, 156.0)),
    (r"\bl4$", _GPU(121.0, 60.0)),
    (r"\bl40s$", _GPU(362.0, 183.0)),
    (r"\bh100 pcie", _GPU(756.0, 378.0)),
    (r"\bh100 nvl", _GPU(835.0, 417.5)),
    (r"\bh200 nvl", _GPU(835.5, 417.5)),
    (r"\bgh200|\bh200$|\bh100 80gb hbm3", _GPU(989.4, 494.7)),
    (r"\bb200$", _GPU(2250.0, 1125.0)),
    (r"rtx 3090$", _GPU(71.0, 35.6)),
    (r"rtx 4090$", _GPU(165.2, 82.6)),
    (r"rtx 5090$", _GPU(209.5, 104.8)),
    (r"\bmi300x", _GPU(1307.4, 653.7)),
)


# Memory in GB (10^9 bytes; TPUs: 2^30), its bandwidth and the interconnect's (all links of a device, one direction) in GB/s,
# first match as above. Sources: the same; a TPU's interconnect is half of what the documentation gives for both directions.
HARDWARE: tuple[tuple[str, tuple[float | None, float | None, float | None]], ...] = (
    (r"\bmig\b", (None, None, None)),
    (r"^tpu v2$", (8 * 1.073741824, 350.0, None)),
    (r"^tpu v3$", (16 * 1.073741824, 450.0, None)),
    (r"^tpu v4$", (32 * 1.073741824, 1228.0, 150.0)),
    (r"^tpu v5 lite$|^tpu v5e$", (16 * 1.073741824, 819.0, 100.0)),
    (r"^tpu v5p?$", (95 * 1.073741824, 2765.0, 300.0)),
    (r"^tpu v6 lite$|^tpu v6e$", (32 * 1.073741824, 1640.0, 224.0)),
    (r"\bt4$", (16.0, 320.0, None)),
    (r"\ba100-sxm4-40gb", (40.0, 1555.0, 300.0)),
    (r"\ba100-sxm4-80gb", (80.0, 2039.0, 300.0)),
    (r"\bl4$", (24.0, 300.0, None)),
    (r"\bl40s$", (48.0, 864.0, None)),
    (r"\bh100 pcie", (80.0, 2000.0, None)),
    (r"\bh100 80gb hbm3", (80.0, 3350.0, 450.0)),
    (r"\bh200$", (141.0, 4800.0, 450.0)),
    (r"\bb200$", (180.0, 8000.0, 900.0)),
    (r"rtx 3090$", (24.0, 936.0, None)),
    (r"rtx 4090$", (24.0, 1008.0, None)),
    (r"rtx 5090$", (32.0, 1792.0, None)),
    (r"\bmi300x", (192.0, 5300.0, 448.0)),
)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A device's memory in bytes, and its bandwidths in bytes/s to this memory and to its neighbours; None: unknown."""

    memory: int | None = None
    bandwidth: float | None = None
    interconnect: float | None = None


def hardware(kind: str) -> Hardware:
    """Return the table's entry for this kind of device."""
    for pattern, (memory, bandwidth, interconnect) in HARDWARE:
        if re.search(pattern, kind.strip().lower()):
            scale = lambda x: None if x is None else x * 1e9
            return Hardware(None if memory is None else int(memory * 1e9), scale(bandwidth), scale(interconnect))
    return Hardware()


@dataclasses.dataclass(frozen=True)
class Peak:
    """A device's dense peak in FLOP/s, and the source of the number."""

    flops: float
    source: str


def table_peak(kind: str, dtype: str) -> float | None:
    """Return the table's dense peak in FLOP/s of one device of this kind, or None for an unknown kind or dtype."""
    kind = re.sub(r"\s+480gb$", "", kind.strip().lower())
    for pattern, peaks in PEAKS:
        if re.search(pattern, kind):
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


def peak(device: Any = None, dtype: str = "float32") -> Peak | None:
    """Return the peak of one device (default: the first) for matmuls in `dtype`; None if unknown.

    An accelerator's peak is looked up; a CPU's is measured with a large matmul on all the cores that this process may use,
    once per process and dtype.
    """
    import jax

    device = jax.devices()[0] if device is None else device
    if device.platform == "cpu":
        return (
            Peak(measured_peak(str(dtype)), "measured with a large matmul")
            if device.process_index == jax.process_index()
            else None
        )
    found = table_peak(device.device_kind, str(dtype))
    return None if found is None else Peak(found, f"dense {dtype} peak of {device.device_kind}")


def utilisation(flops_per_second: float, dtype: str = "float32", devices: Any = None) -> float | None:
    """Return the model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B) of `devices` (default: all); None: unknown.

    The virtual devices of one CPU share its peak.
    """
    import jax

    devices = jax.devices() if devices is None else list(devices)
    one = peak(devices[0], dtype)
    if one is None or not flops_per_second > 0:
        return None
    count = len({d.process_index for d in devices}) if devices[0].platform == "cpu" else len(devices)
    return flops_per_second / (one.flops * count)


@functools.cache
def measured_peak(dtype: str = "float32", size: int = 1536, seconds: float = 0.4) -> float:
    """Return the highest rate of a size x size matmul on the CPU within about `seconds`, in FLOP/s."""
    import jax
    import jax.numpy as jnp

    device = jax.local_devices(backend="cpu")[0]
    with jax.default_device(device):
        a = jnp.ones((size, size), dtype)
        matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))  # XLA's fastest form, also for bf16
        jax.block_until_ready(matmul(a, a))
        best, start = float("inf"), time.perf_counter()
        while time.perf_counter() - start < seconds or best == float("inf"):
            before = time.perf_counter()
            jax.block_until_ready(matmul(a, a))
            best = min(best, time.perf_counter() - before)
    return 2.0 * size**3 / best


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo() -> list[str]:
    """Return the distinct lines of Linux's /proc/cpuinfo that name the processor and its features, sorted; [] elsewhere."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})


def processor() -> str:
    """Return this machine's processor and its vector units: "AMD EPYC, AVX2"."""
    facts = dict(map(str.strip, line.partition(":")[::2]) for line in cpuinfo())
    features = (facts.get("flags") or facts.get("Features") or "").split()
    units = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX", "sve": "SVE", "bf16": "bf16"}
    units = {feature: unit for feature, unit in units.items() if feature in features}
    if "avx512f" in units:
        units.pop("avx2", None)
    return ", ".join([facts.get("model name") or platform.machine() or "unknown processor", *units.values()])


def peak_memory(device: Any = None) -> tuple[int, str] | None:
    """Return (bytes, description) of the peak device memory, or on a CPU of the process's peak resident memory."""
    import jax

    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "peak device memory"
    resident = peak_resident()
    return None if resident is None else (resident, "peak resident memory of the process")


def peak_resident() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
