"""The least time that a step can take: by matrix products, by memory traffic, by what devices send to each other."""

import dataclasses
from collections.abc import Mapping

from ssl_jax.target import Target

UTILISATIONS = (0.3, 0.4, 0.5)  # of the peak in model FLOPs, at which the time of a whole run is stated


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step that each resource of a device is busy; None where the device's figure is not known."""

    compute: float | None
    memory: float | None
    interconnect: float | None

    @property
    def named(self) -> Mapping[str, float]:
        """The seconds that are known, by the resource."""
        values = {"compute": self.compute, "memory": self.memory, "interconnect": self.interconnect}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def binds(self) -> str | None:
        """The resource that takes longest."""
        return max(self.named, key=lambda name: self.named[name]) if self.named else None

    @property
    def seconds(self) -> float | None:
        """The least time of a step, all overlapping perfectly."""
        return max(self.named.values(), default=None)


def roofline(target: Target, dtype: str, *, flops: float, traffic: float | None, sent: float | None) -> Roofline:
    """Return the bounds of a step that computes `flops`, moves `traffic` bytes and sends `sent` bytes on each device.

    The interconnect's figure is that of all links of a device in one direction, which one ring does not reach.
    """
    over = lambda amount, rate: None if amount is None or rate is None else amount / rate
    interconnect = over(sent, target.interconnect) if target.count > 1 else None
    return Roofline(over(flops, target.flops(dtype)), over(traffic, target.bandwidth), interconnect)


def step_seconds(target: Target, dtype: str, model_flops: float, utilisation: float) -> float | None:
    """Return the time of a step of `model_flops` over all devices at a share of their peak."""
    peak = target.flops(dtype)
    return None if peak is None or not model_flops else model_flops / (peak * target.count * utilisation)
