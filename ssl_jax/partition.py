"""How arrays inside a model lie on the mesh of the step being traced, which `jax.set_mesh` names; without one, on one device.

The mesh has the axes (data, fsdp, tensor). Examples are split over data and fsdp, heads and hidden units over tensor.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes over which a batch is split
HEADS = ("tensor",)


def free_axes(names: tuple[str, ...], *sizes: int) -> tuple[str, ...]:
    """The axes among `names` over which XLA splits arrays here, if they divide all `sizes`; else none.

    Inside jax.shard_map the axes that it maps are taken: an array there is one device's part already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(name for name in names if name in mesh.auto_axes and mesh.shape[name] > 1)
    count = 1
    for name in free:
        count *= mesh.shape[name]
    return free if all(size % count == 0 for size in sizes) else ()


def by_rows_and_heads(function: Callable[..., Array], *arrays: Array | None) -> Array:
    """Call `function(*arrays)` on each device with its own examples and heads.

    For kernels that XLA cannot split. Arrays of four axes are [batch, heads, ...], others [batch, ...]; those whose batch axis
    is 1 are held whole by every device. The result is [batch, heads, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if all(mesh.shape[name] == 1 for name in mesh.auto_axes):
        return function(*arrays)
    whole = [x for x in arrays if x is not None and x.ndim == 4]
    batch = whole[0].shape[0]
    rows, heads = free_axes(ROWS, batch), free_axes(HEADS, *(x.shape[1] for x in whole))

    def spec(x: Any) -> P | None:
        if x is None:
            return None
        lead = rows if x.shape[0] == batch else ()
        return P(lead, heads) if x.ndim == 4 else P(lead)

    specs = tuple(spec(x) for x in arrays)
    split = jax.shard_map(function, in_specs=specs, out_specs=spec(whole[0]), axis_names=set(mesh.auto_axes), check_vma=False)
    return split(*arrays)
