"""The hardware that a program is traced for: asked of JAX by default, told where it is not there.

What depends on the platform (attention kernels, forms for XLA:CPU) asks `current()`, never JAX, so that a step can be
traced and compiled for a device that this host does not have.
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
    """`count` devices of one kind. What is not known of a kind is None, never guessed."""

    platform: str  # one of PLATFORMS
    kind: str = ""  # JAX's `device_kind`
    count: int = 1

    def __post_init__(self):
        if self.platform not in PLATFORMS:
            raise ValueError(f"platform={self.platform!r}: must be one of {', '.join(PLATFORMS)}")

    @property
    def memory(self) -> int | None:
        """Bytes of one device's memory."""
        return devices.hardware(self.kind).memory

    @property
    def bandwidth(self) -> float | None:
        """Bytes/s between one device and its memory."""
        return devices.hardware(self.kind).bandwidth

    @property
    def interconnect(self) -> float | None:
        """Bytes/s that one device sends to its neighbours (NVLink, ICI), all links together, one direction."""
        return devices.hardware(self.kind).interconnect

    def flops(self, dtype: str) -> float | None:
        """Dense peak in FLOP/s of one device for matmuls in `dtype`."""
        return devices.table_peak(self.kind, dtype)


_told: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def of(found: Sequence[Any]) -> Target:
    """The target that these JAX devices are."""
    return Target(found[0].platform, found[0].device_kind, len(found))


def current() -> Target:
    """The target that was told, else the devices of this process's default backend."""
    return _told.get() or _asked()


@functools.cache
def _asked() -> Target:
    import jax

    return of(jax.devices())


@contextlib.contextmanager
def told(target: Target) -> Iterator[Target]:
    """Inside, programs are traced for `target`, whatever this host has.

    jax.jit knows nothing of it: a function that was traced before for these shapes is not traced again. Make a new one.
    """
    token = _told.set(target)
    try:
        yield target
    finally:
        _told.reset(token)
