"""Optimizers: clip, scale by the method, decay the weights, scale by the learning rate, with rules per parameter."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.training import rules, schedules
from ssl_jax.training.schedules import NO_SCHEDULES, Schedules

RULES = ("weight_decay", "lr", "freeze")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The config's `optimizer` section. A number that is None takes the method's default."""

    name: str = "adamw"  # "adamw", "adam", "sgd", "lars", "lion", "muon" or "adafactor"
    lr: float | None = None  # peak learning rate; or set base_lr
    base_lr: float | None = None  # peak learning rate at a batch of 256, scaled linearly with the global batch
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float = 0.9  # of sgd, lars and muon
    nesterov: bool = False  # Nesterov momentum in sgd
    bias_correction: bool = True  # of adam and adamw; False for BERT
    weight_decay: float = 0.0
    trust_coefficient: float = 0.001  # of lars
    matrix_lr: float | None = None  # muon: peak learning rate of matrices; `lr` is that of all other parameters
    schedule: str = "warmup_cosine"  # also "warmup_linear", "constant", "warmup_stable_decay", "warmup_min_cosine"
    warmup: str = "0 steps"  # duration of the warm-up
    warmup_start: float = 0.0  # fraction of the peak at step 0
    warmup_offset: int = 0  # 1: (step + 1) / (warmup + 1), as in nanoGPT
    cooldown: str = "20 %"  # duration of the decay of warmup_stable_decay
    cooldown_shape: str = "linear"  # "linear" or "sqrt" (1 - sqrt)
    min_lr: float | None = None  # learning rate at the end of the schedule; or set final_fraction
    final_fraction: float = 0.0  # the same as a fraction of the peak
    clip: float | None = None  # largest global norm of the gradient
    layer_decay: float | None = None  # learning-rate factor per layer, counted from the output
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # weight_decay, lr, freeze: ((regex, value), ...)

    def __post_init__(self):
        if self.name not in METHODS:
            raise UserError(f"name={self.name!r}: unknown optimizer{configs.nearest(self.name, METHODS)}")
        if self.schedule not in schedules.SHAPES:
            raise UserError(f"schedule={self.schedule!r}: unknown schedule{configs.nearest(self.schedule, schedules.SHAPES)}")
        if (self.lr is None) == (self.base_lr is None):
            raise UserError("lr: set exactly one of lr (the peak) and base_lr (the peak at a batch of 256)")
        for name in ("lr", "base_lr", "matrix_lr", "eps", "clip", "trust_coefficient"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise UserError(f"{name}={value}: must be above 0 and below 1e6")
        for name in ("b1", "b2", "momentum", "warmup_start", "final_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1 - (name in ("b1", "b2", "momentum")) * 1e-9:
                raise UserError(f"{name}={value}: must lie in [0, 1{')' if name in ('b1', 'b2', 'momentum') else ']'}")
        if not 0 <= self.weight_decay < 1e6:
            raise UserError(f"weight_decay={self.weight_decay}: must be at least 0")
        if self.min_lr is not None and self.min_lr < 0:
            raise UserError(f"min_lr={self.min_lr}: must be at least 0")
        if self.min_lr is not None and self.final_fraction:
            raise UserError("min_lr: set either min_lr or final_fraction for the end of the schedule, not both")
        if self.lr is not None:
            self.check_end(self.lr)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay}: must lie in (0, 1]")
        if self.warmup_offset not in (0, 1):
            raise UserError(f"warmup_offset={self.warmup_offset}: must be 0 or 1")
        if self.cooldown_shape not in ("linear", "sqrt"):
            raise UserError(f"cooldown_shape={self.cooldown_shape!r}: must be linear or sqrt")
        for name in ("warmup", "cooldown"):
            configs.Duration.parse(getattr(self, name), name)
        for key, value in self.rules.items():
            if key not in RULES:
                raise UserError(f"rules.{key}: unknown rule{configs.nearest(key, RULES)}")
            if value is not None and not isinstance(value, list | tuple):
                raise UserError(f"rules.{key}={value!r}: write ((regular expression, value), ...)")

    def check_end(self, peak: float) -> None:
        """Raise UserError if the schedule would end above its peak."""
        if self.min_lr is not None and self.min_lr > peak:
            raise UserError(f"min_lr={self.min_lr:g}: the schedule would end above its peak, {peak:g}; lower min_lr")

    def check_lengths(self, *, peak: float, total: int, warmup: int, cooldown: int) -> None:
        """Raise UserError if the schedule does not fit a run of `total` steps with this peak learning rate."""
        self.check_end(peak)
        if warmup > total:
            longer = f"{warmup:,} steps are longer than the run, {total:,} steps"
            raise UserError(f'warmup={self.warmup!r}: {longer}; shorten it, such as "5 %"')
        if self.schedule == "warmup_stable_decay" and warmup + cooldown > total:
            parts = f"the warm-up of {warmup:,} steps and the cool-down of {cooldown:,}"
            raise UserError(f"cooldown={self.cooldown!r}: {parts} are longer than the run, {total:,} steps; shorten one")

    def peak(self, batch_size: int) -> float:
        """Return the peak learning rate at a global batch (Goyal et al. 2017: linear in the batch)."""
        return self.lr if self.lr is not None else self.base_lr * batch_size / 256


def default(settings: OptimizerSettings, name: str, value: float) -> float:
    given = getattr(settings, name)
    return value if given is None else given


# Methods: settings, params -> a transformation from gradients to a direction (before weight decay and learning rate) ------


def _adam(settings: OptimizerSettings, params: Any):
    b1, b2, eps = default(settings, "b1", 0.9), default(settings, "b2", 0.999), default(settings, "eps", 1e-8)
    return scale_by_adam(b1, b2, eps, settings.bias_correction)


def scale_by_adam(b1: float, b2: float, eps: float, bias_correction: bool = True) -> optax.GradientTransformation:
    """Scale by m / (sqrt(v) + eps), with (Kingma and Ba 2015) or without (BERT) bias correction of the moments.

    optax computes 1 - b2**t in f32 with an error of 5e-5 in the first steps; here it is exact to rounding.
    """

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros(), zeros())

    def update(grads, state, params=None):
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        c1, c2 = (_correction(b1, count), _correction(b2, count)) if bias_correction else (1.0, 1.0)
        direction = jax.tree.map(lambda m, v: m / c1 / (jnp.sqrt(v / c2) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _correction(decay: float, count: Int[Array, ""]) -> Float[Array, ""]:
    """Return 1 - decay**count."""
    return -jnp.expm1(count * math.log(decay)) if decay > 0 else jnp.ones(())


def _sgd(settings: OptimizerSettings, params: Any):
    return optax.trace(settings.momentum, settings.nesterov) if settings.momentum else optax.identity()


def _lion(settings: OptimizerSettings, params: Any):
    return optax.scale_by_lion(default(settings, "b1", 0.9), default(settings, "b2", 0.99))


def _adafactor(settings: OptimizerSettings, params: Any):
    return optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0))


def _muon(settings: OptimizerSettings, params: Any):
    """Return Muon: orthogonalised momentum for the blocks' matrices, Adam for the rest (Jordan et al. 2024)."""
    label = lambda keys, leaf: "muon" if is_matrix(rules.path_of(keys), leaf.shape) else "adam"
    labels = jax.tree_util.tree_map_with_path(label, params)
    rows_and_columns = lambda updates: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)
    orthogonal = optax.contrib.scale_by_muon(
        beta=settings.momentum, eps=default(settings, "eps", 1e-8), weight_dimension_numbers=rows_and_columns
    )
    muon = optax.chain(orthogonal, _spread())
    return optax.partition({"muon": muon, "adam": _adam(settings, params)}, labels)


def _spread() -> optax.GradientTransformation:
    """Scale by sqrt(max(1, rows out / rows in)): the same root-mean-square output change for every matrix shape."""
    scale = lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5
    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates))


def is_matrix(path: str, shape: tuple[int, ...]) -> bool:
    """Return whether a parameter is a weight matrix inside a block; embeddings and output layers are not."""
    return len(shape) == 2 and rules.block_of(path) is not None


METHODS = {
    "adamw": _adam, "adam": _adam, "sgd": _sgd, "lars": _sgd, "lion": _lion, "muon": _muon, "adafactor": _adafactor,
}  # fmt: skip


# Assembly ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """The rules' values for each parameter, as trees of the parameters' structure."""

    weight_decay: Any  # float, times hyper.weight_decay
    lr: Any  # float, times the scheduled learning rate
    frozen: Any  # bool


def multipliers(settings: OptimizerSettings, params: Any) -> Multipliers:
    """Evaluate the rules on a parameter tree (arrays or shapes)."""

    def number(tree, where):
        for value in jax.tree.leaves(tree):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
                raise UserError(f"{where}: {value!r} must be a number of at least 0")
        return jax.tree.map(float, tree)

    given = {key: value for key, value in settings.rules.items() if value is not None}
    if "weight_decay" in given:
        decay = rules.first_match(given["weight_decay"], params, "optimizer.rules.weight_decay")
    else:
        decay = jax.tree_util.tree_map_with_path(lambda k, p: float(rules.decays(rules.path_of(k), p.shape)), params)
    lr = rules.first_match(given.get("lr", ((".*", 1.0),)), params, "optimizer.rules.lr")
    frozen = rules.first_match(given.get("freeze", ((".*", False),)), params, "optimizer.rules.freeze")
    decay, lr = number(decay, "optimizer.rules.weight_decay"), number(lr, "optimizer.rules.lr")
    if settings.layer_decay is not None:
        table = rules.layer_decay_multipliers(list(rules.flatten(params)), None, settings.layer_decay)
        lr = jax.tree_util.tree_map_with_path(lambda k, v: v * table[rules.path_of(k)], lr)
    if settings.name == "muon" and settings.matrix_lr is not None:
        # a ratio of peaks before scaling with the batch, so that both scale equally
        ratio = settings.matrix_lr / settings.peak(256)
        matrix = lambda k, v, p: v * ratio if is_matrix(rules.path_of(k), p.shape) else v
        lr = jax.tree_util.tree_map_with_path(matrix, lr, params)
    return Multipliers(decay, lr, jax.tree.map(bool, frozen))


def learning_rate(settings: OptimizerSettings, hyper: Mapping[str, Any], step: Int[Array, ""]) -> Float[Array, ""]:
    """Return hyper["lr"] times the schedule at `step`; its lengths in steps are numbers of `hyper` too."""
    final = settings.final_fraction if settings.min_lr is None else settings.min_lr / hyper["lr"]
    factor = schedules.multiplier(
        settings.schedule, step, total=hyper["total_steps"], warmup=hyper["warmup_steps"],
        cooldown=hyper["cooldown_steps"], final=final, offset=settings.warmup_offset, start=settings.warmup_start,
        shape=settings.cooldown_shape,
    )  # fmt: skip
    return hyper["lr"] * factor


def build(
    settings: OptimizerSettings, params: Any, total_steps: int | None = None, scheduled: Schedules = NO_SCHEDULES
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of a parameter tree (arrays or shapes).

    `update(grads, state, params, hyper=, step=)` takes learning rate, weight decay and schedule lengths from `hyper`, so that
    replicas may differ in them; `total_steps` is used if hyper has no "total_steps". Frozen parameters get no update
    and no optimizer state; if a schedule multiplies the learning rate by 0, moments are still updated.
    """
    table = multipliers(settings, params)
    rules_of_lr = tuple((rule[0], i) for i, rule in enumerate(scheduled.lr))
    scheduled_lr = rules.first_match((*rules_of_lr, (".*", -1)), params, "schedules.lr")
    trained = jax.tree.map(lambda frozen: not frozen, table.frozen)
    method = optax.masked(METHODS[settings.name](settings, _kept(params, trained)), trained)
    clip = optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()

    def init(params):
        return method.init(params)

    def update(grads, state, params, *, hyper, step):
        hyper = {"total_steps": total_steps, "warmup_steps": 0, "cooldown_steps": 0, **hyper}
        lr, decay = learning_rate(settings, hyper, step), hyper["weight_decay"]
        if scheduled.weight_decay is not None:
            decay = scheduled.value("weight_decay", hyper, step)
        factors = [scheduled.value(f"lr/{i}", hyper, step) for i in range(len(scheduled.lr))] + [1.0]  # -1: no rule matches
        grads = jax.tree.map(lambda g, keep: g if keep else jnp.zeros_like(g), grads, trained)
        grads, _ = clip.update(grads, clip.init(params))
        if settings.name == "lars":
            grads = _lars(grads, params, table.weight_decay, decay, settings.trust_coefficient)
        elif settings.name == "adam":  # L2 in the gradient, as torch.optim.Adam
            grads = jax.tree.map(lambda g, p, m: g + decay * m * p if m else g, grads, params, table.weight_decay)
        elif settings.name == "sgd":
            grads = jax.tree.map(lambda g, p, m: g + decay * m * p if m else g, grads, params, table.weight_decay)
        direction, state = method.update(grads, state, params)
        if settings.name not in ("lars", "adam", "sgd"):  # decoupled (Loshchilov and Hutter 2019)
            direction = jax.tree.map(lambda u, p, m: u + decay * m * p if m else u, direction, params, table.weight_decay)
        scale = lambda u, m, i, keep: -lr * m * factors[i] * u if keep else jnp.zeros_like(u)
        return jax.tree.map(scale, direction, table.lr, scheduled_lr, trained), state

    return optax.GradientTransformationExtraArgs(init, update)


def _kept(params: Any, keep: Any) -> Any:
    """Return the tree that `optax.masked` passes to its inner transformation."""
    return jax.tree.map(lambda p, k: p if k else optax.MaskedNode(), params, keep)


def _lars(grads: Any, params: Any, multiplier: Any, decay: Float[Array, ""], trust: float) -> Any:
    """Scale as MAE's util/lars.py: for parameters of two or more axes, weight decay is added to the gradient, which is then
    multiplied by trust * |p| / |g|; others are unchanged (You et al. 2017)."""

    def scaled(g, p, m):
        if p.ndim <= 1:
            return g
        g = g + decay * m * p
        p_norm, g_norm = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel())
        both = (p_norm > 0) & (g_norm > 0)
        return g * jnp.where(both, trust * p_norm / jnp.where(both, g_norm, 1), 1)

    return jax.tree.map(scaled, grads, params, multiplier)
