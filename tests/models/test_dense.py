"""Products of bf16 in the form for which XLA's CPU runtime has fast kernels, and their values."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from ssl_jax import cpu, target
from ssl_jax.models.attention import attend
from ssl_jax.models.dense import Dense
from ssl_jax.partition import AXES
from ssl_jax.target import Target
from tests.keys import toy_key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("result", [None, "float32"])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_a_product_is_summed_in_f32(dtype, result, batch):
    draw = lambda seed, rows: jax.random.normal(jax.random.key(seed), (*batch, rows, 300), dtype)
    x, y = draw(0, 5), draw(1, 4)
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64).swapaxes(-1, -2)
    ours = cpu.matmul(x, cpu.transpose(y), result)
    assert ours.dtype == (result or dtype)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), exact, atol=2e-5, rtol=2**-8 if ours.dtype == jnp.bfloat16 else 1e-5
    )


def dense(x, kernel):
    return Dense(kernel.shape[1], use_bias=False, dtype=x.dtype).apply({"params": {"kernel": kernel}}, x)


CASES = {  # function, shapes of its factors, products of its gradient
    "dense": (dense, [(2, 8, 16), (16, 32)], 2),
    "attention": (attend, [(2, 4, 8, 16), (2, 2, 8, 16), (2, 2, 8, 16)], 6),
}


@pytest.mark.parametrize("name", CASES)
def test_every_product_of_bf16_is_a_call_with_an_f32_result_of_unturned_factors(name):
    """Forward and backward: another form is three to four times slower, at f32's rate."""
    function, shapes, expected = CASES[name]
    factors = [jnp.ones(shape, jnp.bfloat16) for shape in shapes]
    gradient = jax.grad(lambda *f: jnp.sum(function(*f).astype(jnp.float32)), range(len(shapes)))
    lowered = jax.jit(gradient).lower(*factors)
    batch = len(shapes[-1]) - 2
    form = r"dot_general.*contracting_dims = \[(\d)\] x \[(\d)\].*-> tensor<[\dx]*x(\w+)>"
    assert set(re.findall(form, lowered.as_text())) == {(str(batch + 1), str(batch), "f32")}
    assert len(re.findall(r"= f32\S* call\(", lowered.compile().as_text())) == expected


def test_a_bias_in_bf16_is_added_and_its_gradient_summed_in_f32():
    """To f32's rounding; flax adds it, and sums its gradient, in bf16."""
    layer, x = Dense(4, dtype=jnp.bfloat16), jax.random.normal(jax.random.key(0), (3, 500, 8), jnp.bfloat16)
    params = jax.jit(layer.init)(toy_key(1), x)["params"] | {"bias": jnp.float32([0.1, -1e-3, 3.0, 0.0])}
    weight = jax.random.normal(jax.random.key(2), (3, 500, 4), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(params["kernel"].astype(jnp.bfloat16), np.float64) + params["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x).astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum((weight * layer.apply({"params": p}, x)).astype(jnp.float32)))(params)["bias"]
    np.testing.assert_allclose(gradient, np.asarray(weight, np.float64).sum((0, 1)), rtol=1e-5, atol=1e-4)


def mesh_of(axis):
    return AbstractMesh(tuple(4 if name == axis else 1 for name in AXES), AXES, axis_types=(AxisType.Auto,) * 3)


def products(function, *arrays):
    """The dtypes of the results of the matrix products of a function, traced for TPUs."""
    with target.told(Target("tpu", "TPU v5 lite", 4)):
        return sorted(re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(jax.make_jaxpr(function)(*arrays))))


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_where_devices_share_a_batch_a_gradient_is_computed_in_f32(axis):
    """Also in bf16: XLA sums each device's part in the dtype of the product. Without a mesh, products stay in bf16."""
    layer, x = Dense(4, dtype=jnp.bfloat16), jax.random.normal(jax.random.key(0), (4, 500, 8), jnp.bfloat16)
    params = jax.jit(layer.init)(toy_key(1), x)["params"]
    weight = jax.random.normal(jax.random.key(2), (4, 500, 4), jnp.bfloat16)
    loss = lambda p, x: jnp.sum((weight * layer.apply({"params": p}, x)).astype(jnp.float32))
    gradient = jax.grad(loss, argnums=(0, 1))
    assert products(gradient, params, x) == ["bf16"] * 3
    with jax.sharding.use_abstract_mesh(mesh_of(axis)):
        assert products(gradient, params, x) == ["bf16", "bf16", "f32"]
        found = gradient(params, x)[0]
    rows, columns = (np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in (x, weight))
    np.testing.assert_allclose(found["kernel"], rows.T @ columns, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["bias"], columns.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("policy, count", [(None, 4), (jax.checkpoint_policies.dots_with_no_batch_dims_saveable, 3)])
def test_recomputation_can_keep_the_product_of_a_dense_layer(policy, count):
    """remat="dots" computes the activation again, not the product; remat="full" both."""
    layer, x = Dense(8, dtype=jnp.bfloat16), jnp.ones((4, 5, 8), jnp.bfloat16)
    params = jax.jit(layer.init)(toy_key(0), x)
    block = jax.checkpoint(lambda p, x: jax.nn.silu(layer.apply(p, x)), policy=policy)
    gradient = jax.grad(lambda p, x: jnp.sum(block(p, x).astype(jnp.float32)), argnums=(0, 1))
    with jax.sharding.use_abstract_mesh(mesh_of("fsdp")):
        assert len(products(gradient, params, x)) == count


def test_the_parameters_are_flaxs():
    ours, theirs = (layer(4, dtype=jnp.bfloat16).init(jax.random.key(0), jnp.ones((2, 8))) for layer in (Dense, nn.Dense))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
