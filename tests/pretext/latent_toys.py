"""Small tasks on views and their batches, for the tests of methods with teachers or joint losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.task import DataInfo
from tests.keys import toy_key

VIT = dict(name="vit", patch_size=2, width=8, depth=1, heads=2)
SHAPES = {"image": (8, 8, 1), "pair": (2, 8, 8, 1), "globals": (2, 8, 8, 1), "locals": (3, 4, 4, 1)}


def task_of(cls, model=None, batch_size=6, shapes=None, **task):
    """A task of the config section `task`, for data of SHAPES."""
    sections = dict(task=task, model=VIT | (model or {}), data=dict(batch_size=batch_size), training=dict(dtype="float32"))
    info = DataInfo({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in (shapes or SHAPES).items()})
    return cls.from_config(ConfigDict(sections), info)


def batch_of(rows=6, seed=0):
    random = np.random.default_rng(seed)
    images = {name: jnp.asarray(random.normal(size=(rows, *shape)), jnp.float32) for name, shape in SHAPES.items()}
    return images | {"position": jnp.arange(rows)}


def parameters(task, seed=0):
    return jax.jit(task.init)(toy_key(seed), batch_of(1))


def loss_of(task):
    """The compiled loss: (params, batch, key, context) -> (loss, metrics)."""
    return jax.jit(lambda params, batch, key, context: task.loss(params, batch, key, train=True, context=context))


def teacher_gradient(task, params, teacher, batch, key=0):
    """The largest absolute gradient of the loss in the teacher's parameters."""

    def loss(teacher, context):
        return task.loss(params, batch, jax.random.key(key), train=True, context=dataclasses.replace(context, teacher=teacher))[
            0
        ]

    grads = jax.jit(jax.grad(loss))(teacher, task.context(teacher))
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))


def slope(function, x, direction, h=1e-5):
    """The derivative of a float64 function along `direction`, by central differences."""
    x, d = np.float64(x), np.float64(direction)
    return (function(x + h * d) - function(x - h * d)) / (2 * h)
