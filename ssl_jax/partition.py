"""The sharding of arrays inside a model over the mesh of the step being traced (`jax.sharding.use_abstract_mesh`, or
`jax.set_mesh`); without a mesh, on one device.

The mesh has the axes (data, fsdp, tensor). Examples are split over data and fsdp, heads and hidden units over tensor.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes over which a batch is split
HEADS = ("tensor",)


def free_axes(names: tuple[str, ...], *sizes: int) -> tuple[str, ...]:
    """Return the axes among `names` over which XLA splits arrays here, if they divide all `sizes`; else none.

    Axes that an enclosing jax.shard_map maps are excluded, because an array there is already one device's part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(name for name in names if name in mesh.auto_axes and mesh.shape[name] > 1)
    return free if all(size % count(free) == 0 for size in sizes) else ()


def count(names: tuple[str, ...]) -> int:
    """Return the number of devices along these axes of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in names)


def rows(x: Float[Array, "batch *rest"]) -> Float[Array, "batch *rest"]:
    """Return `x` sharded over examples only, for activations between the blocks of a model.

    Otherwise XLA shards activations like the parameters and exchanges them instead of gathering the parameters.
    """
    axes = free_axes(ROWS, x.shape[0])
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x


def fsdp_axis(shape: tuple[int, ...], count: int, taken: tuple[int, ...] = ()) -> int | None:
    """Return the axis that a parameter is split over `count` devices of fsdp: the largest that they divide, not `taken`."""
    axes = [i for i, size in enumerate(shape) if i not in taken and size % count == 0 and size >= count]
    return max(axes, key=lambda i: shape[i]) if count > 1 and axes else None


def copies(x: Float[Array, "rows dim"], batch: int) -> Float[Array, "*devices rows dim"]:
    """Return a copy of a table for each device that has its own examples of the batch, [devices, rows, dim].

    For a table with several uses, such as an embedding and the output layer tied to it: each device adds the gradients of its
    uses before they are summed over devices, once. XLA would sum each use's, and a lookup's whole. `take` and
    `models.cross_entropy` accept the result. Return `x` itself if the batch is not split, or the table is split over tensor.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = free_axes(ROWS, batch)
    if not axes or free_axes(HEADS):
        return x
    axis = fsdp_axis(x.shape, mesh.shape["fsdp"]) if "fsdp" in axes else None
    spec = P() if axis is None else P(*[None] * axis, "fsdp")
    own = lambda x: x[None] if axis is None else jax.lax.all_gather(x, "fsdp", axis=axis, tiled=True)[None]
    names = {name for name in mesh.auto_axes if name in axes or mesh.shape[name] == 1}
    return jax.shard_map(own, in_specs=spec, out_specs=P(axes), axis_names=names, check_vma=False)(x)


def take(table: Float[Array, "*devices rows dim"], indices: Int[Array, "batch *rest"]) -> Float[Array, "batch *rest dim"]:
    """Return rows of a table, or of its `copies`, each device from its own."""
    if table.ndim == 2:
        return rows(jnp.take(gathered(table), indices, axis=0))
    if not free_axes(ROWS, indices.shape[0]):
        return jnp.take(table[0], indices, axis=0)
    return by_rows(lambda gather, split, whole: jnp.take(split[0][0], split[1], axis=0), (table, indices))


@jax.custom_vjp
def gathered(x: Array) -> Array:
    """Return `x` replicated on every device; XLA chooses the sharding of its gradient."""
    return jax.lax.with_sharding_constraint(x, P()) if free_axes(AXES) else x


def _gathered_backward(_, g):
    # Without the barrier XLA adds the gradient of a lookup into that of a tied output layer, which it gathers for this.
    return (jax.lax.optimization_barrier(g) if free_axes(AXES) else g,)


gathered.defvjp(lambda x: (gathered(x), None), _gathered_backward)


def over_rows(function: Callable[..., Any], split: tuple, parts: tuple) -> tuple[Any, Any]:
    """Return `function(split, parts, across)` = (sums, results) of each device's own examples: the sums are added up over the
    devices that share the examples, the results are concatenated.

    split: a tree of arrays [batch, ...]; parts: a tree of arrays [rows, ...], split over the mesh's axes `across` ("tensor",
    if it divides the rows) or else replicated. The function must sum over `across` itself whatever needs all rows; a sum with
    one or more axes has the device's own rows. A sum with two or more axes is left split over "fsdp" like the parameter
    (`fsdp_axis`) whose gradient it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = free_axes(ROWS, *(x.shape[0] for x in jax.tree.leaves(split)))
    across = free_axes(HEADS, *(x.shape[0] for x in jax.tree.leaves(parts)))
    if not axes + across:
        return function(split, parts, ())
    fsdp, taken = mesh.shape["fsdp"] if "fsdp" in axes else 1, (0,) if across else ()
    scattered = lambda x: fsdp_axis(x.shape, fsdp, taken) if x.ndim > 1 else None

    def total(x: Array) -> Array:
        axis = scattered(x)
        if axis is None:
            return jax.lax.psum(x, axes) if axes else x
        x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=axis, tiled=True)
        return jax.lax.psum(x, others) if others else x

    def local(split: tuple, parts: tuple) -> tuple[Any, Any]:
        sums, results = function(split, parts, across)
        return jax.tree.map(total, sums), results

    def spec(x: Any) -> P:
        names: list[Any] = [across] if across and x.ndim else []
        axis = scattered(x)
        return P(*names) if axis is None else P(*names, *[None] * (axis - len(names)), "fsdp")

    others = tuple(name for name in axes if name != "fsdp")
    sums, results = jax.eval_shape(lambda *arrays: function(*arrays, ()), split, parts)
    specs = jax.tree.map(spec, sums), jax.tree.map(lambda x: P(axes), results)
    names = {name for name in mesh.auto_axes if name in axes + across or mesh.shape[name] == 1}
    mapped = jax.shard_map(local, in_specs=(P(axes), P(across)), out_specs=specs, axis_names=names, check_vma=False)
    return mapped(split, parts)


def by_rows(function: Callable[..., Any], split: tuple, whole: tuple = ()) -> Any:
    """Return `function(gather, split, whole)` of each device's own examples, concatenated along the first axis.

    split: a tree of arrays [batch, ...]; whole: a tree of replicated arrays. `gather` returns the examples of all devices of an
    array of `split`; its gradient is summed over the devices once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = free_axes(ROWS, *(x.shape[0] for x in jax.tree.leaves(split)))
    if not axes:
        return function(lambda x: x, split, whole)
    gather = lambda x: jax.lax.all_gather(x, axes, tiled=True)
    names = {name for name in mesh.auto_axes if name in axes or mesh.shape[name] == 1}
    local = lambda split, whole: function(gather, split, whole)
    return jax.shard_map(local, in_specs=(P(axes), P()), out_specs=P(axes), axis_names=names, check_vma=False)(split, whole)


def by_rows_and_heads(function: Callable[..., Array], *arrays: Array | None) -> Array:
    """Call `function(*arrays)` on each device with its own examples and heads.

    For kernels that XLA cannot split. Arrays of four axes are [batch, heads, ...], others [batch, ...]; those with a batch
    axis of 1 are replicated. The result is [batch, heads, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if all(mesh.shape[name] == 1 for name in mesh.auto_axes):
        return function(*arrays)
    whole = [x for x in arrays if x is not None and x.ndim == 4]
    batch = whole[0].shape[0]
    examples, heads = free_axes(ROWS, batch), free_axes(HEADS, *(x.shape[1] for x in whole))

    def spec(x: Any) -> P | None:
        if x is None:
            return None
        lead = examples if x.shape[0] == batch else ()
        return P(lead, heads) if x.ndim == 4 else P(lead)

    specs = tuple(spec(x) for x in arrays)
    split = jax.shard_map(function, in_specs=specs, out_specs=spec(whole[0]), axis_names=set(mesh.auto_axes), check_vma=False)
    return split(*arrays)
