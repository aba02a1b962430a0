"""Mesh, recomputation and scan of a config that leaves them "auto", which is their default: by sizes and memory."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.plan import fit, memory_limit
from ssl_jax.plan.topology import Topology
from ssl_jax.target import Target

SHARE = 0.8  # of a device's memory, for what analysis finds: the compiler needs working space
DEEP = 24  # blocks from which on one compiled block serves all: fewer compile fast enough, and scan takes more memory


def resolve(config: ConfigDict, here: Target) -> tuple[ConfigDict, dict[str, Any]]:
    """Return the config for these devices without "auto", and what was chosen by key. Keys that the config sets stay.

    On a CPU, or where a device's memory is not known, nothing is recomputed or scanned and the mesh is one of data. Else the
    cheapest setting that fits by analysis: nothing, recomputed activations between matrix products, parameters split over some
    devices (fsdp), all recomputed, both.
    """
    config = ConfigDict(config.to_dict())
    sections = [path for path in fit.stacks_of(config) if config.get("model") is not None]
    is_open = lambda path: _get(config, path) in (None, "auto")
    free_mesh = config.get("mesh") in (None, "auto") or not config.mesh
    free = {name: [f"{path}.{name}" for path in sections if is_open(f"{path}.{name}")] for name in ("remat", "scan")}
    if config.get("mesh") == "auto":
        del config["mesh"]
        config.mesh = ConfigDict()
    topology = Topology(f"here:{here.count}", here)
    if here.platform == "cpu" or here.memory is None or not (free_mesh or any(free.values())):
        plain = {key: "none" if key.endswith("remat") else False for keys in free.values() for key in keys}
        return _with(config, {key: value for key, value in plain.items() if _get(config, key) == "auto"}), {}
    limit = memory_limit(topology)
    scans = {key: _depth(config, key.rpartition(".")[0]) >= DEEP and _equal_blocks(config, key.rpartition(".")[0])
             for key in free["scan"]}  # fmt: skip
    chosen: dict[str, Any] = {}
    for options in _settings(free["remat"], here.count if free_mesh else 1):
        chosen = {**scans, **dict.fromkeys(free["remat"], "none"), **({"mesh.data": -1} if free_mesh else {}), **options}
        found = fit.predicted(_with(config, chosen), topology)
        if found is None or limit is None or sum(found) <= SHARE * limit:
            break  # it fits, or it cannot be told
    return _with(config, chosen), chosen


def _settings(remats: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield settings, the cheapest in time first."""
    splits = fit.splits(count)
    remat = lambda how: dict.fromkeys(remats, how)
    yield {}
    if remats:
        yield remat("dots")
    yield from splits[:3]
    if remats:
        yield remat("full")
        yield from ({**remat("dots"), **split} for split in splits)
        yield from ({**remat("full"), **split} for split in splits)


def _get(config: Mapping[str, Any] | ConfigDict, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping | ConfigDict) else None
    return value


def _with(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    copy = ConfigDict(config.to_dict())
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        if section not in copy and "." not in section:
            copy[section] = ConfigDict()
        holder = copy
        for name in section.split("."):
            holder = holder[name]
        holder[key] = value
    return copy


def _depth(config: ConfigDict, path: str) -> int:
    from ssl_jax.models.vit import SIZES

    section = _get(config, path) or {}
    return section.get("depth") or SIZES.get(section.get("size"), {}).get("depth", 0)


def _equal_blocks(config: ConfigDict, path: str) -> bool:
    """Whether one compiled block can serve all: no block differs in its norms or its attention window."""
    section = _get(config, path) or {}
    return section.get("first_attention_norm", True) and (section.get("window") is None or section.get("global_every", 1) == 1)
