"""One mesh with the axes (data, fsdp, tensor), and the sharding of each array."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl_jax import cpu
from ssl_jax.errors import UserError
from ssl_jax.partition import AXES, ROWS, fsdp_axis
from ssl_jax.training import rules
from ssl_jax.training.settings import MeshSettings

BATCH = PartitionSpec(ROWS)

# Heads and the hidden units of an MLP are split over `tensor`, without communication inside attention or the MLP. So is
# the vocabulary: the output layer's loss exchanges a few numbers per token.
TENSOR_RULES = (
    (r"(.*/)?(query|key|value|up|gate)/kernel", (None, "tensor")),
    (r"(.*/)?(query|key|value|up|gate)/bias", ("tensor",)),
    (r"(.*/)?(out|down)/kernel", ("tensor", None)),
    (r"(.*/)?(token_embedding|head/weight)", ("tensor", None)),
    (r".*", ()),
)


FEWEST_ROWS = 4  # per core; with fewer, the sum over cores costs more than dividing the rows saves


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None, rows: int | None = None) -> Mesh:
    """Return the mesh over all devices; raise UserError if the axes do not match their number.

    Of a CPU's cores (`cpu.split_cores`), only as many are used as divide `rows`.
    """
    devices = jax.devices() if devices is None else devices
    if cpu.cores_are_devices and rows is not None and settings.data == -1 and devices[0].platform == "cpu":
        others = settings.fsdp * settings.tensor
        devices = devices[: others * most_cores(len(devices) // others, rows)]
    sizes = {name: getattr(settings, name) for name in AXES}
    known = int(np.prod([n for n in sizes.values() if n != -1]))
    for name, size in sizes.items():
        if size == -1:
            if len(devices) % known:
                raise UserError(
                    f"mesh.{name}=-1: {len(devices)} devices are not a multiple of the other axes ({known}); change these"
                )
            sizes[name] = len(devices) // known
    count = int(np.prod(list(sizes.values())))
    if count > len(devices) or (count < len(devices) and jax.process_count() > 1):
        text = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"mesh: {text} is {count} devices, but there are {len(devices)}; leave data=-1 to take them all")
    array = np.array(devices[:count]).reshape(tuple(sizes.values()))
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * 3)


def most_cores(count: int, rows: int) -> int:
    """Return the largest number of cores, at most `count`, that divides `rows` rows with at least FEWEST_ROWS each."""
    return max(n for n in range(1, max(count, 1) + 1) if rows % n == 0 and (n == 1 or rows // n >= FEWEST_ROWS))


def fitted(mesh: Mesh, rows: int) -> Mesh:
    """Return `mesh`, or a smaller mesh of CPU cores if they do not divide `rows`."""
    if not (cpu.cores_are_devices and mesh.devices.flat[0].platform == "cpu" and mesh.shape["data"] == mesh.size):
        return mesh
    return Mesh(mesh.devices[: most_cores(mesh.size, rows)], mesh.axis_names, axis_types=mesh.axis_types)


def shared_rows(batch_size: int, accumulation: int, relates_examples: bool) -> int:
    """Return the rows that cores divide; 1 for a loss over the whole batch, which was slower when divided."""
    return 1 if relates_examples else batch_size // accumulation


def data_parallel(mesh: Mesh, rows: int) -> Mesh | None:
    """Return `mesh` if it only shards `rows` rows over `data`, else None; TrainStep then sums gradients explicitly."""
    alone = mesh.size > 1 and mesh.shape["data"] == mesh.size and rows % mesh.size == 0
    return mesh if alone else None


def check_batch(mesh: Mesh, batch_size: int, accumulation: int, relates_examples: bool = False) -> None:
    """Raise UserError unless devices and accumulation divide the global batch."""
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % accumulation:
        raise UserError(f"training.accumulation={accumulation}: must divide data.batch_size={batch_size}")
    if batch_size % split:
        raise UserError(f"data.batch_size={batch_size}: must be a multiple of the {split} devices of mesh.data x mesh.fsdp")
    if not relates_examples and (batch_size // accumulation) % split:
        raise UserError(
            f"data.batch_size={batch_size} / training.accumulation={accumulation} is {batch_size // accumulation}, "
            f"which the {split} devices of mesh.data x mesh.fsdp do not divide"
        )


def parameter_specs(params: Any, mesh: Mesh, settings: MeshSettings) -> dict[str, PartitionSpec]:
    """Return a PartitionSpec for each parameter path: the rules' axes, then `fsdp` over the largest axis that it divides."""
    matched = rules.first_match((*settings.rules, *TENSOR_RULES), params, "mesh.rules")
    matched = jax.tree_util.tree_flatten_with_path(matched, is_leaf=lambda x: isinstance(x, tuple | list))[0]
    matched = {rules.path_of(keys): value for keys, value in matched}
    return {path: spec_of(leaf.shape, matched[path], mesh) for path, leaf in rules.flatten(params).items()}


def spec_of(shape: tuple[int, ...], axes: tuple, mesh: Mesh) -> PartitionSpec:
    names: list[Any] = [*axes, *[None] * (len(shape) - len(axes))][: len(shape)]
    for i, name in enumerate(names):
        if name is not None and (name not in AXES or mesh.shape[name] == 1 or shape[i] % mesh.shape[name]):
            names[i] = None  # free for fsdp
    fsdp = mesh.shape["fsdp"]
    if "fsdp" not in names:
        axis = fsdp_axis(shape, fsdp, tuple(i for i, name in enumerate(names) if name is not None))
        if axis is not None:
            names[axis] = "fsdp"
    return PartitionSpec(*names)


def state_shardings(state: Any, mesh: Mesh, settings: MeshSettings) -> Any:
    """Return a NamedSharding for each leaf of a State of shapes.

    Optimizer state and moving average are sharded like their parameter (their path ends with its path); scalars are replicated.
    """
    specs = parameter_specs(state.params, mesh, settings)
    shapes = {path: leaf.shape for path, leaf in rules.flatten(state.params).items()}

    def sharding(keys, leaf):
        parts = rules.path_of(keys).split("/")
        for i in range(len(parts)):
            path = "/".join(parts[i:])
            if path in specs and shapes[path] == leaf.shape:
                return NamedSharding(mesh, specs[path])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """Return the rows of the global batch that this process reads."""
    if jax.process_count() == 1:
        return slice(0, batch_size)
    rows = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    spans = sorted({index[0].indices(batch_size)[:2] for index in rows})
    if any(a[1] != b[0] for a, b in zip(spans, spans[1:], strict=False)):
        raise UserError("mesh: the rows of a process are not contiguous; make mesh.tensor divide its number of devices")
    return slice(spans[0][0], spans[-1][1])


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int, steps: int | None = None) -> dict[str, jax.Array]:
    """Return host arrays as global device arrays; with `steps`, they have a leading axis of steps, which is not sharded."""
    if jax.process_count() == 1 and mesh.size == 1:
        return jax.device_put(dict(batch), mesh.devices.flat[0])
    sharding = NamedSharding(mesh, BATCH if steps is None else PartitionSpec(None, ROWS))

    def put(value):
        lead = (batch_size,) if steps is None else (steps, batch_size)
        return jax.make_array_from_process_local_data(sharding, value, (*lead, *value.shape[len(lead) :]))

    return {name: put(value) for name, value in batch.items()}


def replicated(mesh: Mesh) -> Any:
    """Return the sharding of a replicated array."""
    return NamedSharding(mesh, PartitionSpec())


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Return host arrays, equal in all processes, as replicated device arrays."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]), tree)


def put_state(tree: Any, shardings: Any) -> Any:
    """Return host arrays, equal in all processes, as device arrays with these shardings."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    place = lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda i: np.asarray(x)[i])
    return jax.tree.map(place, tree, shardings)


def to_host(tree: Any) -> Any:
    """Return arrays of any sharding as whole NumPy arrays in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def from_primary(value: Any) -> Any:
    """Return the first process's number in all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))
