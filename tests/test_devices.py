"""Peaks are dense, of the right device, and never guessed."""

import types

import jax
import jax.numpy as jnp
import pytest

from ssl_jax import devices


@pytest.mark.parametrize(
    ("kind", "dtype", "tflops"),
    [
        ("TPU v2", "bfloat16", 22.5),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v5p", "float32", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "float32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA GH200 480GB", "bfloat16", 989.4),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("Tesla T4", "float16", 65),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 5090", "bfloat16", 209.5),
        ("AMD Instinct MI300X", "bfloat16", 1307.4),
    ],
)
def test_known_devices(kind, dtype, tflops):
    assert devices.table_peak(kind, dtype) == pytest.approx(tflops * 1e12, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16"),
        ("NVIDIA L40", "bfloat16"),
        ("Tesla T4", "bfloat16"),
        ("TPU v99", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB", "int8"),
    ],
)
def test_what_is_not_known_is_not_guessed(kind, dtype):
    assert devices.table_peak(kind, dtype) is None
    other = types.SimpleNamespace(platform="gpu", device_kind=kind, process_index=0)
    assert devices.peak(other, dtype) is None
    assert devices.utilisation(1e12, dtype, [other]) is None


def test_a_cpu_is_measured_once_and_lies_above_a_small_matmuls_rate():
    before = devices.measured_peak.cache_info().hits
    first = devices.measured_peak("float32", 512, 0.05)
    assert devices.measured_peak("float32", 512, 0.05) == first
    assert devices.measured_peak.cache_info().hits == before + 1
    assert 1e8 < first < 1e14


def test_utilisation_counts_every_accelerator_but_one_cpu_once(monkeypatch):
    gpus = [types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", process_index=0)] * 8
    assert devices.utilisation(989.4e12, "bfloat16", gpus) == pytest.approx(1 / 8)
    monkeypatch.setattr(devices, "measured_peak", lambda dtype: 1e11)
    virtual = [jax.devices("cpu")[0]] * 4
    assert devices.utilisation(5e10, "float32", virtual) == pytest.approx(0.5)
    assert devices.utilisation(float("nan"), "float32", virtual) is None


def test_peak_memory_covers_a_live_array():
    x = jnp.ones((40, 1024, 1024), jnp.float32).block_until_ready()
    used, what = devices.peak_memory()
    assert x.nbytes < used < 2**40
    assert "memory" in what


def test_a_processor_is_named_with_its_widest_units(monkeypatch):
    intel = ["flags\t\t: fpu avx2 avx512f amx_bf16 avx512_bf16", "model name\t: Intel Xeon"]
    monkeypatch.setattr(devices, "cpuinfo", lambda: intel)
    assert devices.processor() == "Intel Xeon, AVX-512, bf16, AMX"
    monkeypatch.setattr(devices, "cpuinfo", lambda: ["flags\t\t: fpu avx avx2", "model name\t: AMD EPYC"])
    assert devices.processor() == "AMD EPYC, AVX2"
    monkeypatch.setattr(devices, "cpuinfo", lambda: [])
    assert devices.processor() == (devices.platform.machine() or "unknown processor")
