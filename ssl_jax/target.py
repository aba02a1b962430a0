"""The hardware that a program is traced for: by default JAX's devices, or a target set by `told`.

Code that depends on the platform (attention kernels, forms for XLA:CPU) calls `current()` instead of JAX, so that a step
can be traced and compiled for a device that this host does not have.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from ssl_jax import devices

PLATFORMS = ("cpu", "gpu", "tpu")


@dataclasses.dataclass(frozen=True)
class Target:
    """`count` devices of one kind. Unknown properties are None, never guessed."""

    platform: str  # one of PLATFORMS
    kind: str = ""  # JAX's `device_kind`
    count: int = 1

    def __post_init__(self):
        if self.platform not in PLATFORMS:
            raise ValueError(f"platform={self.platform!r}: must be one of {', '.join(PLATFORMS)}")

    @property
    def memory(self) -> int | None:
        """Return one device's memory in bytes."""
        return devices.hardware(self.kind).memory

    @property
    def bandwidth(self) -> float | None:
        """Return the bandwidth between one device and its memory in bytes/s."""
        return devices.hardware(self.kind).bandwidth

    @property
    def interconnect(self) -> float | None:
        """Return the bytes/s that one device sends to its neighbours (NVLink, ICI) over all links, one direction."""
        return devices.hardware(self.kind).interconnect

    def flops(self, dtype: str) -> float | None:
        """Return one device's dense peak in FLOP/s for matmuls in `dtype`."""
        return devices.table_peak(self.kind, dtype)


_told: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def of(found: Sequence[Any]) -> Target:
    """Return these JAX devices as a target."""
    return Target(found[0].platform, found[0].device_kind, len(found))


def current() -> Target:
    """Return the target set by `told`, else the devices of this process's default backend."""
    return _told.get() or _asked()


@functools.cache
def _asked() -> Target:
    import jax

    return of(jax.devices())


@contextlib.contextmanager
def told(target: Target) -> Iterator[Target]:
    """Trace programs for `target` instead of this host's devices within the context.

    jax.jit's cache ignores the target: a function already traced for these shapes is not traced again. Make a new one.
    """
    token = _told.set(target)
    try:
        yield target
    finally:
        _told.reset(token)
