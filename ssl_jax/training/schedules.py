"""Learning-rate schedules as multipliers of the peak, functions of traced numbers: one program serves any length.

`step` counts completed updates: the first update uses step 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

Number = Num[Array, ""] | float | int


def warmup_factor(step: Number, warmup: Number, offset: int = 0, start: float = 0.0) -> Float[Array, ""]:
    """start + (1 - start) (step + offset) / (warmup + offset): exactly `start` at step 0 without an offset.

    offset=1 is nanoGPT's lr * (it + 1) / (warmup_iters + 1).
    """
    fraction = (jnp.float32(step) + offset) / jnp.maximum(jnp.float32(warmup) + offset, 1)
    return start + (1 - start) * fraction


def _progress(step: Number, warmup: Number, total: Number) -> Float[Array, ""]:
    """0 at the end of warm-up, 1 at the end of training."""
    span = jnp.maximum(jnp.float32(total) - jnp.float32(warmup), 1)
    return jnp.clip((jnp.float32(step) - jnp.float32(warmup)) / span, 0, 1)


def _half_cosine(x: Float[Array, ""]) -> Float[Array, ""]:
    return 0.5 * (1 + jnp.cos(jnp.pi * x))


def cosine(step, total, warmup, cooldown, final):
    """Half a cosine from 1 to `final` after warm-up (MAE's util/lr_sched.py)."""
    return final + (1 - final) * _half_cosine(_progress(step, warmup, total))


def linear(step, total, warmup, cooldown, final):
    """A straight line from 1 to `final` after warm-up (BERT)."""
    return 1 - (1 - final) * _progress(step, warmup, total)


def constant(step, total, warmup, cooldown, final):
    return jnp.ones((), jnp.float32)


def _left(step, total, cooldown):
    """1 before the last `cooldown` steps, then down to 0 at `total`."""
    return jnp.clip((jnp.float32(total) - jnp.float32(step)) / jnp.maximum(jnp.float32(cooldown), 1), 0, 1)


def stable_linear(step, total, warmup, cooldown, final):
    """Constant, then a straight line to `final` over the last `cooldown` steps."""
    return final + (1 - final) * _left(step, total, cooldown)


def stable_sqrt(step, total, warmup, cooldown, final):
    """Constant, then 1 - sqrt(x) over the last `cooldown` steps (Hagele et al. 2024, equation 1)."""
    return final + (1 - final) * (1 - jnp.sqrt(1 - _left(step, total, cooldown)))


def whole_cosine(step, total, warmup, cooldown, final):
    """Half a cosine over all of training, warm-up included."""
    return final + (1 - final) * _half_cosine(_progress(step, 0, total))


SHAPES: dict[str, Callable] = {
    "cosine": cosine,
    "warmup_cosine": cosine,
    "linear": linear,
    "warmup_linear": linear,
    "constant": constant,
    "warmup_stable_decay": stable_linear,
    "warmup_min_cosine": whole_cosine,
}


def multiplier(
    name: str,
    step: Int[Array, ""] | int,
    *,
    total: Number,
    warmup: Number = 0,
    cooldown: Number = 0,
    final: Number = 0.0,
    offset: int = 0,
    start: float = 0.0,
    shape: str = "linear",
) -> Float[Array, ""]:
    """The factor on the peak learning rate at `step`.

    name: a key of SHAPES. "warmup_min_cosine" is min(linear warm-up, half a cosine over everything) (IcarusWizard/MAE);
    every other one rises by `warmup_factor` for `warmup` steps and then follows its curve.
    """
    curve = stable_sqrt if name == "warmup_stable_decay" and shape == "sqrt" else SHAPES[name]
    rising, falling = warmup_factor(step, warmup, offset, start), curve(step, total, warmup, cooldown, jnp.float32(final))
    if name == "warmup_min_cosine":
        return jnp.where(jnp.float32(warmup) > 0, jnp.minimum(rising, falling), falling)
    return jnp.where(jnp.float32(step) < jnp.float32(warmup), rising, falling)
