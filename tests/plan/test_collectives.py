"""Steps compiled for TPUs that are not here: what their devices exchange, and how often."""

import importlib.util

import pytest

from ssl_jax import config as configs
from ssl_jax.plan import compiled, topology

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU with libtpu"),
]

SMALL = dict(depth=2, width=128, heads=2)
GPT = {
    **{f"model.{name}": value for name, value in SMALL.items()},
    "model.vocabulary_multiple": 128, "data.batch_size": 32, "data.block": 128, "training.accumulation": 4,
}  # fmt: skip
MAE = {
    **{f"model.{name}": value for name, value in SMALL.items()},
    "model.size": None, "model.patch_size": 16, "data.image_size": 64, "data.batch_size": 64, "training.accumulation": 2,
    "task.decoder.depth": 1, "task.decoder.width": 64, "task.decoder.heads": 2,
}  # fmt: skip
CLIP = {
    **{f"model.{tower}.{name}": value for tower in ("image", "text") for name, value in SMALL.items()},
    "model.dim": 128, "data.image_size": 64, "data.context_length": 16, "data.batch_size": 64,
}  # fmt: skip
SCALARS = 1024  # bytes of losses, counts and norms, which are summed apart


def compile_for(text, file, settings, **changes):
    """Return (bytes of the gradient in f32, the step's collectives of more than scalars)."""
    changes = settings | {name.replace("__", "."): value for name, value in changes.items()}
    config = configs.load(f"configs/{file}", {name: str(value) for name, value in changes.items()})
    devices = topology.parse(text)
    _, program = compiled.program_of(config, devices, vocabulary=512)
    step = compiled.compile_step(program, devices)
    gradient = 4 * sum(compiled.parameters_by_part(program).values())
    return gradient, [c for c in step.collectives if c.bytes > SCALARS]


def total(found, *kinds):
    return sum(c.total for c in found if c.kind in kinds)


@pytest.mark.parametrize("file, settings", [("gpt/gpt2_124m.py", GPT), ("mae/vit_imagenet.py:variant=B", MAE)])
def test_data_parallel_steps_sum_the_gradient_once(file, settings):
    """One sum of the f32 gradient a step, no other exchange, and none in the loop over microbatches."""
    gradient, found = compile_for("v5e:2x2", file, settings)
    assert {c.kind for c in found} <= {"all-reduce", "reduce-scatter", "all-gather"}
    assert not [c for c in found if c.loops]
    assert 0.99 * gradient < total(found, "all-reduce", "reduce-scatter") <= 1.2 * gradient


@pytest.mark.parametrize("scan", [False, True])
def test_fsdp_gathers_each_parameter_at_most_twice(scan):
    """Once forward and once backward, in bf16. Gradients are summed once, in f32; activations stay where they are."""
    gradient, found = compile_for("v5e:2x2", "gpt/gpt2_124m.py", GPT, training__accumulation=1, model__scan=scan,
                                  model__depth=3, mesh__data=1, mesh__fsdp=4)  # fmt: skip
    assert total(found, "all-gather") <= 1.05 * gradient  # twice in bf16; the embedding table in f32 and in bf16
    assert {c.shape.partition("[")[0] for c in found if c.kind in ("all-reduce", "reduce-scatter")} == {"f32"}
    assert total(found, "all-reduce", "reduce-scatter") <= 1.01 * gradient
    assert total(found, "all-to-all", "collective-permute") < 0.1 * gradient


def test_fsdp_beside_data_sums_each_gradient_once_over_both():
    """Over fsdp the gradient, over data each device's quarter of it; of the tied table one gradient, not one for each use."""
    gradient, found = compile_for("v5e:2x4", "gpt/gpt2_124m.py", GPT, training__accumulation=1, mesh__data=2, mesh__fsdp=4)
    assert total(found, "reduce-scatter") == pytest.approx(gradient, rel=0.04)  # without positions, norms and biases
    assert total(found, "all-reduce", "reduce-scatter") <= 1.25 * gradient


@pytest.mark.parametrize("accumulation", [1, 2])
def test_contrastive_embeddings_are_gathered_once(accumulation):
    """The texts of all devices, ahead of the loop over pieces of the logits; the images stay with their devices."""
    gradient, found = compile_for("v5e:2x2", "clip/vit_b32_laion400m.py", CLIP, task__logit_chunks=4,
                                  training__accumulation=accumulation)  # fmt: skip
    assert [c.count for c in found if c.kind == "all-gather"] == [1]
    assert not [c for c in found if c.loops]
    assert total(found, "all-reduce", "reduce-scatter") <= 1.2 * gradient


def test_tensor_parallel_devices_share_the_vocabulary():
    """The embedding table is gathered once, for the lookup. The output layer's loss and the blocks exchange a few numbers and
    one activation a token, and no device gets another's part of a weight."""
    gradient, found = compile_for("v5e:2x2", "gpt/gpt2_124m.py", GPT, training__accumulation=1, mesh__data=2, mesh__tensor=2)
    assert [(c.count, c.bytes) for c in found if c.kind == "all-gather"] == [(1, 4 * 512 * 128)]
    assert {c.kind for c in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    whole, table = 4 * (128 * 128 + 5 * 128), 4 * 256 * 128  # positions and norms; a device's half of the vocabulary
    own = whole + (gradient - whole) / 2
    over_data = [c for c in found if c.kind == "all-reduce" and c.shape.startswith("f32") and "f32[16,128" not in c.shape]
    assert total(over_data, "all-reduce") == pytest.approx(own + table, rel=0.01)  # the table's by lookup and output layer
