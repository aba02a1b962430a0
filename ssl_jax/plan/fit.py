"""Search for the smallest change of a config that makes its step fit into the devices' memory."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.config import override
from ssl_jax.errors import UserError
from ssl_jax.plan import analysis, compiled, memory_limit
from ssl_jax.plan.topology import Topology

COMPILED = 3  # candidates to compile at most; each may take minutes
CANDIDATES = 64  # candidates to analyse at most; each takes seconds


@dataclasses.dataclass(frozen=True)
class Device:
    """A description in place of a JAX device, for analysis without a compiler."""

    id: int
    platform: str
    device_kind: str
    process_index: int = 0

    def memory_stats(self) -> None:
        return None


def virtual(config: ConfigDict, topology: Topology) -> tuple[Any, Any]:
    """Return `compiled.program_of` for devices known only by number and kind, without a compiler for them."""
    target = topology.target
    devices = [Device(i, target.platform, target.kind) for i in range(target.count)]
    return compiled.program_of(config, dataclasses.replace(Described(topology.text, target), described=tuple(devices)))


@dataclasses.dataclass(frozen=True)
class Described(Topology):
    """A topology whose devices are descriptions."""

    described: tuple[Device, ...] = ()

    @property
    def devices(self) -> tuple[Device, ...]:  # type: ignore[override]
        return self.described


def candidates(config: ConfigDict, topology: Topology) -> Iterator[dict[str, str]]:
    """Yield overrides in the order to try: recomputation, more microbatches, parameters sharded by fsdp, combinations."""
    stacks = stacks_of(config)
    remats = [{f"{path}.remat": how for path in stacks} for how in ("dots", "full")]
    deeper = {f"{path}.scan": "True" for path in stacks}
    accumulation = int((config.get("training") or {}).get("accumulation", 1))
    more = [{"training.accumulation": str(accumulation * n)} for n in (2, 4, 8, 16)]
    split = [{key: str(n) for key, n in sizes.items()} for sizes in splits(topology.target.count)]
    yield from remats
    yield from more
    yield from split
    yield from ({**remat, **one} for remat in remats for one in more)
    yield from ({**remat, **one} for remat in remats for one in split)
    yield from ({**remat, **deeper, **one} for remat in remats for one in split)
    yield from ({**remats[-1], **one, **m} for one in split for m in more)


def splits(count: int) -> list[dict[str, int]]:
    """Return meshes of `count` devices that shard parameters over some of them, in the order to try.

    In all of them a device sends about as much as under data parallelism (docs/scale.md). Over 8 devices the sums take 9/8 of
    the gradient's bytes, over 4 it is 5/4; with more devices each one's part of a parameter becomes small.
    """
    return [{"mesh.data": count // n, "mesh.fsdp": n} for n in (8, 4, 16, 32, 64, 128, 256) if count % n == 0]


def stacks_of(config: ConfigDict) -> list[str]:
    """Return the paths of the config's sections that define a stack of blocks: the model's towers, the task's own stack."""
    model, task = config.get("model") or {}, config.get("task") or {}
    towers = [f"model.{name}" for name in ("image", "text", "encoder", "decoder") if name in model]
    return (towers or ["model"]) + [f"task.{name}" for name in ("decoder", "predictor") if name in task]


def changed(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Return a copy of the config with overrides."""
    copy = ConfigDict(config.to_dict())
    for key, value in overrides.items():
        override(copy, key, value)
    return copy


def predicted(config: ConfigDict, topology: Topology) -> tuple[int, int] | None:
    """Return (state and batch, temporaries) in bytes per device by analysis; None if the setting is invalid."""
    try:
        _, program = virtual(config, topology)
        memory = analysis.analysed(program, topology)
    except UserError:
        return None
    return memory.state + memory.batch, memory.temporaries or 0


def proposal(config: ConfigDict, topology: Topology, needed: int | None = None) -> str | None:
    """Return a sentence with the first candidate that fits and its peak memory; None if none of those tried fits.

    needed: peak bytes of the config's own compiled step, which calibrate the analysis of the candidates. If there is a
    compiler for the devices, a candidate that fits by analysis is compiled before it is proposed.
    """
    limit, own = memory_limit(topology), predicted(config, topology)
    if limit is None or own is None:
        return None
    scale = max((needed - own[0]) / max(own[1], 1), 0.1) if needed else 1.0
    tried = 0
    for overrides, _ in zip(candidates(config, topology), range(CANDIDATES), strict=False):
        other = changed(config, overrides)
        found = predicted(other, topology)
        if found is None or found[0] + scale * found[1] > limit:
            continue
        words = " ".join(f"--config.{key}={value}" for key, value in overrides.items())
        if topology.missing():
            return f"it fits with {words} ({(found[0] + found[1]) / 2**30:.1f} GiB by analysis)"
        tried += 1
        step = compiled.compile_step(compiled.program_of(other, topology)[1], topology)
        if step.memory.peak <= limit:
            return f"it fits with {words} ({step.memory.peak / 2**30:.1f} GiB, compiled)"
        scale = max(scale, (step.memory.peak - found[0]) / max(found[1], 1))
        if tried == COMPILED:
            return None
    return None
