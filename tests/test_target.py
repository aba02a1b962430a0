"""Programs are traced for the platform that is told, and what is known of a device is of the right one."""

import threading

import jax
import jax.numpy as jnp
import pytest

from ssl_jax import cpu, target
from ssl_jax.target import Target


def test_by_default_it_is_what_jax_has():
    assert target.current() == Target("cpu", jax.devices()[0].device_kind, jax.device_count())


def test_a_told_target_holds_inside_only_and_in_its_own_thread():
    seen = []
    with target.told(Target("tpu", "TPU v5 lite", 16)) as told:
        assert target.current() is told
        with target.told(Target("gpu")):
            assert target.current().platform == "gpu"
        assert target.current() is told
        thread = threading.Thread(target=lambda: seen.append(target.current().platform))
        thread.start()
        thread.join()
    assert target.current().platform == "cpu" and seen == ["cpu"]


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match="platform='cuda': must be one of cpu, gpu, tpu"):
        Target("cuda")


@pytest.mark.parametrize("kind, memory, bandwidth, interconnect, flops", [
    ("TPU v5 lite", 16 * 2**30, 819e9, 100e9, 197e12),
    ("TPU v5p", 95 * 2**30, 2765e9, 300e9, 459e12),
    ("NVIDIA H100 80GB HBM3", 80e9, 3350e9, 450e9, 989.4e12),
    ("NVIDIA A100-SXM4-40GB", 40e9, 1555e9, 300e9, 312e12),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None, None, None),
    ("TPU v99", None, None, None, None),
])  # fmt: skip
def test_known_hardware(kind, memory, bandwidth, interconnect, flops):
    found = Target("gpu", kind)
    assert found.memory == (None if memory is None else pytest.approx(memory, rel=1e-9))
    assert (found.bandwidth, found.interconnect, found.flops("bfloat16")) == (bandwidth, interconnect, flops)


def test_forms_for_the_cpu_are_plain_elsewhere():
    """No call that may not be inlined, no hand-written gradient, in a program traced for another platform."""
    x, kernel = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)

    def value(x, kernel):
        y = cpu.materialize_cotangent(cpu.materialize(cpu.affine(x, kernel, jnp.ones(5))))
        return jnp.sum(cpu.matmul(y, cpu.transpose(y)).astype(jnp.float32))

    texts = {}
    for platform in ("cpu", "gpu", "tpu"):
        with target.told(Target(platform)):
            texts[platform] = jax.jit(jax.grad(lambda x, k: value(x, k), (0, 1))).lower(x, kernel).as_text()
    assert "inlineable" in texts["cpu"] and "optimization_barrier" in texts["cpu"]
    assert texts["gpu"] == texts["tpu"] and "inlineable" not in texts["gpu"] and "optimization_barrier" not in texts["gpu"]
