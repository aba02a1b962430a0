"""The shapes that experiments/throughput times are the published ones, and its tables find their place."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from ssl_jax import bench_peer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments" / "throughput"))

import breakdown  # noqa: E402
import gpu  # noqa: E402
import measure  # noqa: E402
import shapes  # noqa: E402


def parameters(parts):
    batch = {name: jax.ShapeDtypeStruct((2, *s.shape), s.dtype) for name, s in parts.info.shapes.items()}
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(parts.task.init, jax.random.key(0), batch)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("GPT-2 124M, T=1024", 124_439_808 + 47 * 768),  # 50,257 tokens padded to 50,304
        ("BERT-base, T=128", 109_514_298 - 384 * 768),  # BertForMaskedLM, with 128 of its 512 positions
        ("BERT-base, T=512", 109_514_298),
        ("CLIP ViT-B/32", 151_277_313),
        ("CLIP ViT-B/16", 149_620_737),
    ],
)
def test_a_shape_has_the_published_number_of_parameters(name, count, monkeypatch):
    found = shapes.gpu()[name]
    found.config.data.batch_size = 2
    assert parameters(shapes.prepare(found)) == count


@pytest.mark.parametrize("name", list(shapes.gpu(tiny=True)))
def test_every_shape_has_a_peer(name):
    shape = shapes.gpu(tiny=True)[name]
    parts = shapes.prepare(shape)
    assert bench_peer.reference(parts.task, shape.config)["inputs"]
    raw = parts.stream.host_batch(0)
    batch = jax.eval_shape(parts.stream.on_device, parts.stream.resident, raw, jax.random.key(0))
    assert {n: batch[n].shape[1:] for n in parts.info.shapes} == {n: s.shape for n, s in parts.info.shapes.items()}


def test_a_table_replaces_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "HERE", tmp_path)
    (tmp_path / "README.md").write_text("a\n<!-- cpu -->\nold\n<!-- /cpu -->\nb\n")
    measure.into_readme("cpu", "new")
    measure.into_readme("cpu", "newer")
    assert (tmp_path / "README.md").read_text() == "a\n<!-- cpu -->\nnewer\n<!-- /cpu -->\nb\n"


def test_time_of_an_operation_is_its_own():
    """A loop of 10 that holds operations of 4 and 3 has 3 of its own; what follows it is apart."""
    events = [(0, 10, "while"), (1, 5, "dot"), (6, 9, "copy"), (10, 12, "dot"), (2, 3, "add")]
    spent = {}
    for name, time in breakdown.own_times(events):
        spent.setdefault(name, []).append(time)
    assert {name: sorted(times) for name, times in spent.items()} == {"while": [3], "dot": [2, 3], "copy": [3], "add": [1]}


def test_operations_are_sorted_by_what_they_hold():
    """Every instruction of a compiled program is found, a fusion by its dearest operation, with the name JAX gave it."""
    import jax.numpy as jnp

    def step(x, w):
        with jax.named_scope("mlp"):
            return jax.lax.erf(x @ w), jnp.sort(x, axis=0)

    x = jnp.ones((64, 32))
    known = breakdown.instructions(jax.jit(step).lower(x, jnp.ones((32, 48))).compile().as_text())
    kinds = {kind for kind, _ in known.values()}
    assert {"matrix products, with fused operations", "activations (erf, tanh, exp, log)", "lookups"} <= kinds
    products = [where for kind, where in known.values() if kind.startswith("matrix") and where]
    assert products and {breakdown.part(where) for where in products} == {"MLP"}


GPU_PARTS = [
    pytest.param(["numbers"], id="numbers", marks=pytest.mark.slow),
    pytest.param(["gpt2", "mae_l", "replicas", "nanogpt", "cifar10"], id="rest", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("parts", GPU_PARTS)
def test_the_gpu_script_runs_through_at_a_small_size(parts, tmp_path):
    """Every part writes its file as it ends; losses of a CPU are those stored, in f32 and bf16."""
    script = pathlib.Path(breakdown.__file__).with_name("gpu.py")
    command = [sys.executable, str(script), "--tiny", "--to", str(tmp_path), "--minutes", "30", "--only", *parts]
    subprocess.run(command, check=True, timeout=1800)
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in parts}
    assert not {part: value["error"] for part, value in found.items() if "error" in value}
    if "numbers" in parts:
        assert found["numbers"]["float32"]["right"] and found["numbers"]["bfloat16"]["right"]
    else:
        assert found["gpt2"]["peer"]["ratio"] > 0 and found["mae_l"]["peer"]["ratio"] > 0
        assert found["replicas"]["ratio"] > 0
        assert found["nanogpt"]["results"] and "linear_probe/accuracy" in found["cifar10"]["results"]


def test_the_gpu_scripts_parts_share_the_time():
    """Both trainings get time: half of what the others left, then the rest. No part gets more than there is."""
    left, taken = 720.0, {}
    for name in gpu.PARTS:
        taken[name] = gpu.seconds_of(name, left, tiny=False)
        left -= taken[name]
    assert taken == {"numbers": 120, "gpt2": 180, "mae_l": 180, "replicas": 60, "nanogpt": 90, "cifar10": 90}
    assert gpu.seconds_of("gpt2", 50, tiny=False) == 50 and gpu.seconds_of("gpt2", 700, tiny=True) == 700


@pytest.mark.slow
def test_predicted_memory_is_near_what_steps_take():
    """Within a quarter; below, since XLA's figure holds no allocator and no thread."""
    script = pathlib.Path(breakdown.__file__).with_name("memory.py")
    command = [sys.executable, str(script), "configs/mae/fashion_mnist.py", "--config.data.batch_size=512"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    predicted, measured = (int(word) for word in done.stdout.splitlines()[-1].split() if word.isdigit())
    assert 0.75 < predicted / measured < 1.25
