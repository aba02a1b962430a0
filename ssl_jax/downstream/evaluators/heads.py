"""Linear heads on arrays of features: logistic regression by L-BFGS, and grids of heads by stochastic gradient descent."""

import copy
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ssl_jax.downstream.class_weights import binary_cross_entropy
from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Linear:
    """logits = x @ weight + bias, on unstandardised features: the standardisation is folded into weight and bias."""

    weight: Float[np.ndarray, "dim classes"]
    bias: Float[np.ndarray, "classes"]

    def __call__(self, x: Float[np.ndarray, "examples dim"]) -> Float[np.ndarray, "examples classes"]:
        return np.asarray(x @ self.weight + self.bias)

    @property
    def finite(self) -> bool:
        """Whether training ended with finite weights."""
        return bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())


def moments(x: Float[np.ndarray, "examples dim"]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, f32; the deviation of a constant feature is 1.

    Raises UserError if these are not finite.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    for start in range(0, len(x), 8192):
        square += np.square(x[start : start + 8192] - mean.astype(np.float32), dtype=np.float64).sum(axis=0)
    std = np.sqrt(square / len(x))
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    with np.errstate(over="ignore"):
        mean, std = mean.astype(np.float32), std.astype(np.float32)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise UserError("features are NaN, infinite or too large for f32; training diverged, or the input is not normalised")
    return mean, std


# Logistic regression ------------------------------------------------------------------------------------------------


WIDE = 2048  # size of the largest eigendecomposition; with more features and examples, a sample of the examples is used
RANK = 1024  # eigenvectors used of that sample
PATH = 30  # iterations per candidate strength, starting from the head of the next stronger one; twice as many for the first


class LogisticRegression:
    """Logistic regression by L-BFGS, for several strengths on one data set: multinomial, or for multi-hot labels
    [examples, classes] one independent binary regression per class.

    Minimises mean_i w_i CE_i + l2 / 2 |W|^2 (with several classes per example CE_i is their sum, positives weighted by
    `positive`) over standardised features (scikit-learn's C is 1 / (l2 * examples)); the bias is not penalised. As a
    preconditioner, each direction along an eigenvector of the features' covariance is divided by its expected curvature,
    e / classes + l2 (for independent classes e / 4 + l2), so that differences of the features' variances do not slow L-BFGS.
    The optimum does not change: the rotation preserves |W|, and the penalty undoes the scaling.

    The eigenvectors are those of the covariance or, with fewer examples than features, of the Gram matrix, and the features
    are rotated onto them once. If both numbers exceed WIDE, the first RANK eigenvectors of WIDE examples precondition
    the problem, and the features are not rotated: time and memory grow linearly in examples and in features.
    """

    def __init__(
        self,
        x: Float[np.ndarray, "examples dim"],
        labels: Int[np.ndarray, "examples ..."],
        classes: int,
        positive: Float[np.ndarray, "classes"] | None = None,
    ):
        self.classes, self.labels = classes, jnp.asarray(labels)
        self.positive = np.ones(classes, np.float32) if positive is None else positive.astype(np.float32)
        self.spread = classes if labels.ndim == 1 else 4
        self.mean, self.std = moments(x)
        if min(x.shape) > WIDE:
            self._precondition(x)
        else:
            self._rotate(x)

    def _rotate(self, x: np.ndarray) -> None:
        standard = lambda rows: (rows - self.mean) / self.std
        if len(x) < x.shape[1]:
            z = standard(x)
            e, vectors = np.linalg.eigh((z @ z.T).astype(np.float64) / len(x))
            e, vectors = (part[..., e > 1e-7 * e[-1]] for part in (e, vectors))
            rotation = z.T @ (vectors / np.sqrt(e * len(x))).astype(np.float32)
        else:
            covariance = np.zeros((x.shape[1], x.shape[1]), np.float64)
            for start in range(0, len(x), 8192):
                z = standard(x[start : start + 8192])
                covariance += z.T @ z
            e, rotation = np.linalg.eigh(covariance / len(x))
        self.curvature = np.maximum(e, 0).astype(np.float32)
        self.rotation = (rotation / self.std[:, None]).astype(np.float32)
        self.z = jnp.asarray(x) @ self.rotation - self.mean @ self.rotation
        width = self.z.shape[1]
        self.top, self.rest = np.zeros((width, 0), np.float32), 0.0
        self.shift, self.divisor = np.zeros(width, np.float32), np.ones(width, np.float32)

    def _precondition(self, x: np.ndarray) -> None:
        z = (x[np.linspace(0, len(x) - 1, WIDE).astype(int)] - self.mean) / self.std
        e, vectors = np.linalg.eigh((z @ z.T).astype(np.float64) / WIDE)
        e, vectors = e[-RANK:], vectors[:, -RANK:]
        e = np.maximum(e, 1e-7 * e[-1])
        self.curvature, self.rotation = e.astype(np.float32), None
        self.top = z.T @ (vectors / np.sqrt(e * WIDE)).astype(np.float32)
        self.rest = max(float(np.square(z, dtype=np.float64).sum() / WIDE - e.sum()), 0.0) / (x.shape[1] - RANK)
        self.z, self.shift, self.divisor = jnp.asarray(x), self.mean, self.std

    def fit(self, l2: float, weights=None, start=None, iterations: int = 100, tolerance: float = 1e-4):
        """Return the head for `l2`, as (W, b) in the space of `z`; `weights` f32[examples] (0 excludes an example)."""
        weights = jnp.ones(len(self.labels)) if weights is None else jnp.asarray(weights, jnp.float32)
        if start is None:
            start = jnp.zeros((self.z.shape[1], self.classes)), jnp.zeros(self.classes)
        scale = 1 / np.sqrt(self.curvature / self.spread + l2)
        rest = scale if self.rotation is not None else np.float32(1 / np.sqrt(self.rest / self.spread + l2))
        basis = (self.top, scale[: self.top.shape[1]], rest)
        data = self.z, self.shift, self.divisor, self.labels, weights, self.positive
        return _lbfgs(start, *data, basis, l2, iterations, tolerance)

    def logits(self, head) -> Float[np.ndarray, "examples classes"]:
        """Return the logits of the examples given at construction."""
        return np.asarray(_logits(head, self.z, self.shift, self.divisor))

    def linear(self, head) -> Linear:
        weight, bias = (np.asarray(part) for part in head)
        weight = weight / self.std[:, None] if self.rotation is None else self.rotation @ weight
        return Linear(weight, bias - self.mean @ weight)


@jax.jit
def _logits(head, z, shift, divisor):
    """Return logits of a head on the standardised features (z - shift) / divisor, without a copy of these."""
    weight = head[0] / divisor[:, None]
    return z @ weight - shift @ weight + head[1]


@jax.jit
def _lbfgs(start, z, shift, divisor, labels, weights, positive, basis, l2, iterations, tolerance):
    """L-BFGS on v, where W = scaled(v): times `scale` along the columns of `top`, and times `rest` across them."""
    top, scale, rest = basis
    weights = weights / jnp.sum(weights)
    rest = jnp.reshape(rest, (-1, 1))

    def scaled(v, power=1):
        inside = (scale[:, None] ** power - rest**power if top.shape[1] else jnp.zeros((0, 1))) * (top.T @ v)
        return rest**power * v + top @ inside

    def objective(head):
        weight = scaled(head[0])
        logits = _logits((weight, head[1]), z, shift, divisor)
        if labels.ndim == 2:
            error = jnp.sum(binary_cross_entropy(logits, labels, positive), axis=1)
        else:
            own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            error = jax.nn.logsumexp(logits, axis=1) - own
        return jnp.sum(weights * error) + l2 / 2 * jnp.sum(jnp.square(weight))

    optimizer = optax.lbfgs(memory_size=10, linesearch=optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one"))
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry):
        head, state, i, _ = carry
        value, grad = value_and_grad(head, state=state)
        updates, state = optimizer.update(grad, state, head, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(head, updates), state, i + 1, optax.global_norm(state[-1].grad)

    head = scaled(start[0], -1), start[1]
    carry = head, optimizer.init(head), 0, jnp.inf
    head, _, steps, _ = jax.lax.while_loop(lambda c: (c[2] < iterations) & (c[3] > tolerance), step, carry)
    return scaled(head[0]), head[1]


# Stochastic descent, many heads at once -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Descent:
    """How heads are trained by stochastic descent. A learning rate is its base value times batch / 256."""

    optimizer: str = "sgd"  # "sgd" or "lars"
    learning_rates: tuple = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # base values
    weight_decays: tuple = (0.0,)
    epochs: float = 10
    warmup_epochs: float = 0
    batch_size: int = 128
    norm: str = "standard"  # "standard" (mean and deviation of the split) or "batch" (batch norm without affine, eps 1e-6)
    init_std: float = 0.01

    def __post_init__(self):
        if self.optimizer not in ("sgd", "lars"):
            raise UserError(f"optimizer={self.optimizer!r}: must be sgd or lars")
        if self.norm not in ("standard", "batch"):
            raise UserError(f"norm={self.norm!r}: must be standard or batch")
        for name in ("learning_rates", "weight_decays"):
            values = getattr(self, name)
            if not values or any(not isinstance(v, int | float) or v < 0 for v in values):
                raise UserError(f"{name}={values!r}: must be one or more numbers, none negative")
        if self.epochs <= 0 or self.batch_size < 1 or self.warmup_epochs < 0:
            raise UserError("epochs, warmup_epochs and batch_size must be positive")

    @property
    def heads(self) -> tuple[tuple[float, float], ...]:
        """(learning rate, weight decay) of each head."""
        return tuple((lr, wd) for lr in self.learning_rates for wd in self.weight_decays)


def train_linear_heads(
    x: Float[np.ndarray, "examples dim"] | Sequence[Float[np.ndarray, "examples _"]],
    labels: Int[np.ndarray, "examples ..."],
    classes: int,
    settings: Descent,
    seed: int,
) -> list[Linear] | list[list[Linear]]:
    """One head for each of `settings.heads`, all trained in one program on the same stream of batches.

    With `labels` [examples, classes] of 0 and 1, each class is a binary logistic regression: the loss is their sum.
    Of several representations of the same examples, a list for each; a head does not depend on which others are trained.
    """
    if not isinstance(x, np.ndarray):
        return _train_all(tuple(x), labels, classes, settings, seed)
    return _train_all((x,), labels, classes, settings, seed)[0]


def _train_all(xs, labels, classes, settings: Descent, seed: int) -> list[list[Linear]]:
    count = len(labels)
    batch = min(settings.batch_size, count)
    per_epoch = count // batch
    steps = max(round(settings.epochs * per_epoch), 1)
    random = np.random.default_rng(seed)
    order = [random.permutation(count)[: per_epoch * batch] for _ in range(-(-steps // per_epoch))]
    order = np.concatenate(order)[: steps * batch].reshape(steps, batch).astype(np.int32)
    progress = np.arange(steps) / steps
    warmup = min(settings.warmup_epochs / settings.epochs, 1.0)
    cosine = 0.5 * (1 + np.cos(np.pi * np.clip((progress - warmup) / max(1 - warmup, 1e-9), 0, 1)))
    schedule = np.where(progress < warmup, progress / max(warmup, 1e-9), cosine).astype(np.float32)
    rates, decays = (jnp.asarray(v, jnp.float32) for v in zip(*settings.heads, strict=True))
    draw = lambda x: copy.deepcopy(random).standard_normal((x.shape[1], classes)).astype(np.float32)
    starts, scales = [settings.init_std * draw(x) for x in xs], [moments(x) for x in xs]
    if settings.norm == "batch":
        scales = [(np.zeros_like(mean), np.ones_like(std)) for mean, std in scales]
    heads, running = _run_descent(
        [jnp.asarray(x) for x in xs], jnp.asarray(labels), starts, order, schedule, rates * batch / 256, decays, scales,
        optimizer=settings.optimizer, norm=settings.norm,
    )  # fmt: skip
    if settings.norm == "batch":
        scales = [(np.asarray(mean), np.sqrt(np.asarray(var) + 1e-6)) for mean, var in running]
    found = []
    for (weights, biases), (mean, std) in zip(heads, scales, strict=True):
        folded = np.moveaxis(np.asarray(weights), -1, 0) / std[:, None]
        found.append([Linear(w, b - mean @ w) for w, b in zip(folded, np.asarray(biases).T, strict=True)])
    return found


def lars_ratio(
    weight: Float[Array, "dim classes heads"], grad: Float[Array, "dim classes heads"], trust: float = 0.001
) -> Float[Array, "heads"]:
    """trust |w| / |g| of each head, and 1 where either vanishes (You et al. 2017, equation 6)."""
    w, g = (jnp.sqrt(jnp.sum(jnp.square(v), axis=(0, 1))) for v in (weight, grad))
    return jnp.where((w > 0) & (g > 0), trust * w / jnp.where(g > 0, g, 1.0), 1.0)


@functools.partial(jax.jit, static_argnames=("optimizer", "norm"))
def _run_descent(xs, labels, starts, order, schedule, rates, decays, scales, *, optimizer: str, norm: str):
    """Momentum 0.9, weight decay in the gradient; LARS on the weight only. Batch norm keeps torch's running moments.

    The heads of a representation are one matrix [dim, classes * heads]: two multiplications a step, whatever their number.
    They lie innermost, so that what is done for each (softmax over classes, rate, decay) runs along them.
    """
    heads, classes = len(rates), starts[0].shape[1]

    def normalised(xb, scale):
        if norm == "standard":
            return (xb - scale[0]) / scale[1], scale
        mean, var = jnp.mean(xb, axis=0), jnp.var(xb, axis=0)
        unbiased = var * len(xb) / max(len(xb) - 1, 1)
        running = 0.9 * scale[0] + 0.1 * mean, 0.9 * scale[1] + 0.1 * unbiased
        return (xb - mean) * jax.lax.rsqrt(var + 1e-6), running

    def update(head, momentum, xb, own, rate):
        weight, bias = head
        logits = (xb @ weight.reshape(len(weight), -1)).reshape(-1, classes, heads) + bias
        said = jax.nn.softmax(logits, axis=1) if labels.ndim == 1 else jax.nn.sigmoid(logits)
        error = (said - own) / len(xb)  # of the mean cross entropy
        grad = (xb.T @ error.reshape(len(xb), -1)).reshape(weight.shape) + decays * weight
        if optimizer == "lars":
            grad = grad * lars_ratio(weight, grad)
        momentum = tuple(0.9 * m + g for m, g in zip(momentum, (grad, jnp.sum(error, axis=0)), strict=True))
        return tuple(p - rate * m for p, m in zip(head, momentum, strict=True)), momentum

    def step(carry, now):
        index, factor = now
        own = (jax.nn.one_hot(labels[index], classes) if labels.ndim == 1 else labels[index])[:, :, None]
        after = []
        for x, (head, momentum, scale) in zip(xs, carry, strict=True):
            xb, scale = normalised(x[index], scale)
            after.append((*update(head, momentum, xb, own, rates * factor), scale))
        return after, None

    carry = []
    for start, scale in zip(starts, scales, strict=True):
        head = jnp.broadcast_to(start[:, :, None], (*start.shape, heads)), jnp.zeros((classes, heads))
        carry.append((head, jax.tree.map(jnp.zeros_like, head), jax.tree.map(jnp.asarray, scale)))
    carry, _ = jax.lax.scan(step, carry, (order, schedule))
    return [head for head, _, _ in carry], [scale for _, _, scale in carry]
