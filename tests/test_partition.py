"""What XLA cannot split is split by hand over the mesh, and gives what one device gives."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import partition

SPLIT = """
import functools, json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh
from ssl_jax import partition, target
from ssl_jax.models import kernels
KERNEL
def mesh_of(*shape):
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), partition.AXES, axis_types=(AxisType.Auto,) * 3)

draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
q, k, v = draw(0, 4, 4, 128, 16), draw(1, 4, 2, 128, 16), draw(2, 4, 2, 128, 16)
place, segments = jnp.arange(128)[None], jnp.where(jnp.arange(128) < 50, 1, 2)[None]

def value(q, k, v, segments):
    rules = dict(causal=True, q_segments=segments, kv_segments=segments)
    y = kernels.attention(q, k, v, q_positions=place, kv_positions=place, **rules)
    return jnp.sum(jnp.sin(y))

gradient = lambda: jax.jit(jax.value_and_grad(lambda *x: value(*x), (0, 1, 2)))(q, k, v, segments)
norms = lambda tree: [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(tree)]
found = [norms(gradient())]
for shape in ((4, 1, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)):  # two key heads are not split over four devices
    with jax.set_mesh(mesh_of(*shape)), target.told(target.Target("tpu", count=4)):
        found.append([*norms(gradient())])
print(json.dumps([found, shapes]))
"""
# Stands for the TPU's kernel: it computes what its device holds, and remembers how much that is.
STAND_IN = """
shapes = []
def splash(q, k, v, *, causal, window, q_segments, kv_segments):
    shapes.append([q.shape[0], q.shape[1], k.shape[1]])
    from ssl_jax.models.attention import allowed, attend
    place = jnp.arange(q.shape[2])[None]
    mask = allowed(place, place, causal=causal, window=window, q_segments=q_segments, kv_segments=kv_segments)
    return attend(q, k, v, mask=mask)
kernels.splash = splash
"""
INTERPRETED = "shapes, kernels.splash = [], functools.partial(kernels.splash, interpret=True)\n"


def test_a_kernel_gets_each_devices_own_examples_and_heads(child):
    found, shapes = json.loads(child(SPLIT.replace("KERNEL", STAND_IN), devices=4).splitlines()[-1])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=2e-5)
    assert [shapes[i] for i in range(0, len(shapes), len(shapes) // 4)] == [[1, 4, 2], [2, 2, 1], [2, 2, 1], [4, 4, 2]]


@pytest.mark.slow
def test_splash_attention_runs_on_a_mesh(child):
    found, _ = json.loads(child(SPLIT.replace("KERNEL", INTERPRETED), devices=4).splitlines()[-1])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=2e-5)


def test_without_a_mesh_nothing_is_split():
    x = jnp.ones((2, 3, 4, 5))
    assert partition.free_axes(partition.AXES, 8) == ()
    np.testing.assert_array_equal(jax.jit(lambda x: partition.by_rows_and_heads(lambda a, b: a + 1, x, None))(x), x + 1)


MESHES = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh
from ssl_jax import partition

mesh_of = lambda *shape: Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), partition.AXES,
                              axis_types=(AxisType.Auto,) * 3)
"""


def assert_all_equal_the_first(printed: str) -> None:
    """The last line printed: {name: [arrays, arrays, ...]}; all equal to 2e-6 of the largest entry."""
    for name, (whole, *others) in json.loads(printed.splitlines()[-1]).items():
        for other in others:
            for mine, theirs in zip(other, whole, strict=True):
                np.testing.assert_allclose(mine, theirs, atol=2e-6 * np.abs(theirs).max(), err_msg=name)


PAIRS = (
    MESHES
    + """
from ssl_jax.pretext.contrastive import infonce, sigmoid
from ssl_jax.pretext.joint_embedding import nt_xent

unit = lambda i: (lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True))(jax.random.normal(jax.random.key(i), (24, 8)))
same = jnp.stack([jnp.arange(24, dtype=jnp.uint32) // 2, jnp.zeros(24, jnp.uint32)], axis=1)  # every text stands twice
losses = {
    "infonce": lambda a, b, s, chunks: infonce(a, b, s, chunks=chunks),
    "infonce, equal texts": lambda a, b, s, chunks: infonce(a, b, s, same=same, chunks=chunks),
    "sigmoid": lambda a, b, s, chunks: sigmoid(a, b, s, 0.1 * s, same=same, chunks=chunks),
    "nt_xent": lambda a, b, s, chunks: nt_xent(a, b, 1 / s, chunks)[0],
}
found = {}
for name, loss in losses.items():
    run = lambda chunks: jax.jit(jax.value_and_grad(lambda *x: loss(*x, chunks), (0, 1, 2)))(unit(0), unit(1), jnp.float32(5))
    values = lambda chunks: [np.asarray(x, float).tolist() for x in jax.tree.leaves(run(chunks))]
    found[name] = [values(1)]
    for shape, chunks in (((4, 1, 1), 1), ((4, 1, 1), 3), ((2, 2, 1), 4), ((2, 1, 2), 24)):
        with jax.set_mesh(mesh_of(*shape)):
            found[name].append(values(chunks))
print(json.dumps(found))
"""
)


@pytest.mark.slow
def test_losses_over_all_pairs_are_those_of_one_device(child):
    """Values and gradients in embeddings and scale, however the rows lie and into however many pieces they are cut."""
    assert_all_equal_the_first(child(PAIRS, devices=4))


OUTPUT_LAYER = (
    MESHES
    + """
from ssl_jax.models.cross_entropy import cross_entropy

draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
found = {}
for rows in (24, 23):  # a vocabulary that four devices divide, and one that they do not
    given = draw(0, 8, 6, 4), draw(1, rows, 4), draw(2, rows)
    labels, weights = jnp.arange(48).reshape(8, 6) * 7 % rows, jnp.abs(draw(3, 8, 6))
    def value(hidden, weight, bias):
        return cross_entropy(hidden, weight, labels, bias, label_weights=weights, z_loss=0.1, chunks=chunks)
    run = lambda: jax.jit(lambda *x: jax.value_and_grad(value, (0, 1, 2), has_aux=True)(*x))(*given)
    values = lambda: [np.asarray(x, float).tolist() for x in jax.tree.leaves(run())]
    chunks = 1
    found[rows] = [values()]
    for shape in ((4, 1, 1), (2, 2, 1), (1, 1, 4), (2, 1, 2), (1, 2, 2)):
        with jax.set_mesh(mesh_of(*shape)):
            for chunks in (1, 3):
                found[rows].append(values())
print(json.dumps(found))
"""
)


@pytest.mark.slow
def test_an_output_layer_split_over_devices_is_that_of_one(child):
    """Loss, metrics and gradients, with rows split over data and fsdp and the vocabulary over tensor."""
    assert_all_equal_the_first(child(OUTPUT_LAYER, devices=4))


TIED = (
    MESHES
    + """
from ssl_jax.models.cross_entropy import cross_entropy, logits

draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
found = {}
for rows in (24, 23):  # split over four devices by rows, and by columns
    given, tokens, labels = (draw(0, rows, 8), draw(1, rows)), *(jnp.arange(48).reshape(8, 6) * n % rows for n in (5, 7))
    def value(table, bias):
        table = partition.copies(table, 8)
        assert table.ndim == (3 if split else 2)
        hidden = jnp.tanh(partition.take(table, tokens))
        loss = cross_entropy(hidden, table, labels, bias, chunks=chunks)[0]
        few = partition.take(table, tokens[:3])  # rows that the devices do not divide
        return loss + jnp.mean(jnp.sin(logits(hidden, table, bias))) + jnp.mean(jnp.sin(few))
    run = lambda: jax.jit(lambda *x: jax.value_and_grad(value, (0, 1))(*x))(*given)
    values = lambda: [np.asarray(x, float).tolist() for x in jax.tree.leaves(run())]
    chunks, split = 1, False
    found[rows] = [values()]
    for shape in ((4, 1, 1), (2, 2, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2)):
        with jax.set_mesh(mesh_of(*shape)):
            split = shape[2] == 1
            for chunks in (1, 3):
                found[rows].append(values())
print(json.dumps(found))
"""
)


@pytest.mark.slow
def test_a_tied_table_copied_to_devices_has_the_gradient_of_one(child):
    """Of the lookup, the loss and the logits together, and of a lookup of fewer rows than there are devices."""
    assert_all_equal_the_first(child(TIED, devices=4))
