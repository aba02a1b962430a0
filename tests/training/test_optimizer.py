"""Optimizers against their published update rules, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training.optimizer import METHODS, OptimizerSettings, build

STEPS = 6


def hyper(lr=0.1, weight_decay=0.0, total=STEPS):
    numbers = dict(lr=lr, weight_decay=weight_decay)
    lengths = dict(total_steps=total, warmup_steps=0, cooldown_steps=0)
    return {k: jnp.float32(v) for k, v in numbers.items()} | {k: jnp.int32(v) for k, v in lengths.items()}


def problem(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "block00": {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)},
        "head": {"kernel": rng.normal(size=(3, 2))},
    }
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(STEPS)]
    return params, grads


def run(settings, weight_decay=0.0, lr=0.1):
    params, grads = problem()
    optimizer = build(settings, params)
    state = optimizer.init(params)
    for step, g in enumerate(grads):
        updates, state = optimizer.update(g, state, params, hyper=hyper(lr, weight_decay), step=jnp.int32(step))
        params = jax.tree.map(lambda p, u: np.asarray(p + u), params, updates)
    return params


def each(rule):
    """Apply `rule(p, list of gradients)` of one parameter in float64 to every parameter."""
    params, grads = problem()
    return jax.tree.map(lambda p, *g: rule(p.astype(np.float64), [x.astype(np.float64) for x in g]), params, *grads)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def adam(p, grads, lr=0.1, b1=0.9, b2=0.95, eps=1e-8, decay=0.0, correct=True):
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = (1 - b1**t, 1 - b2**t) if correct else (1, 1)
        p = p - lr * decay * (p.ndim > 1) * p - lr * (m / c1) / (np.sqrt(v / c2) + eps)
    return p


def test_adamw_is_torchs():
    settings = OptimizerSettings(name="adamw", lr=1.0, b2=0.95, schedule="constant")
    close(run(settings, weight_decay=0.3), each(lambda p, g: adam(p, g, decay=0.3)))


def test_bert_adam_has_no_bias_correction():
    settings = OptimizerSettings(name="adamw", lr=1.0, b2=0.95, eps=1e-6, schedule="constant", bias_correction=False)
    close(run(settings, weight_decay=0.01), each(lambda p, g: adam(p, g, eps=1e-6, decay=0.01, correct=False)))


def test_adam_adds_weight_decay_to_the_gradient():
    settings = OptimizerSettings(name="adam", lr=1.0, schedule="constant", rules={"weight_decay": ((".*", 1.0),)})

    def rule(p, grads):
        m = v = np.zeros_like(p)
        for t, g in enumerate(grads, 1):
            g = g + 0.2 * p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return p

    close(run(settings, weight_decay=0.2), each(rule))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov):
    settings = OptimizerSettings(name="sgd", lr=1.0, momentum=0.9, nesterov=nesterov, schedule="constant")

    def rule(p, grads):
        b = np.zeros_like(p)
        for g in grads:
            g = g + 0.1 * (p.ndim > 1) * p
            b = 0.9 * b + g
            p = p - 0.1 * (g + 0.9 * b if nesterov else b)
        return p

    close(run(settings, weight_decay=0.1), each(rule))


def test_lars_is_maes():
    """util/lars.py: weight decay joins the gradient before the trust ratio; neither for parameters of one axis."""
    settings = OptimizerSettings(name="lars", lr=1.0, schedule="constant")

    def rule(p, grads):
        mu = np.zeros_like(p)
        for g in grads:
            if p.ndim > 1:
                g = g + 0.1 * p
                p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(g)
                g = g * (0.001 * p_norm / g_norm if p_norm > 0 and g_norm > 0 else 1)
            mu = 0.9 * mu + g
            p = p - 4.0 * mu
        return p

    close(run(settings, weight_decay=0.1, lr=4.0), each(rule))


def test_lion_takes_the_sign():
    settings = OptimizerSettings(name="lion", lr=1.0, b1=0.9, b2=0.99, schedule="constant")

    def rule(p, grads):
        m = np.zeros_like(p)
        for g in grads:
            p = p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.3 * (p.ndim > 1) * p)
            m = 0.99 * m + 0.01 * g
        return p

    close(run(settings, weight_decay=0.3, lr=0.01), each(rule))


def test_muon_moves_block_matrices_by_nearly_orthogonal_steps_and_adam_the_rest():
    settings = OptimizerSettings(name="muon", lr=0.1, matrix_lr=0.2, b2=0.95, momentum=0.95, schedule="constant")
    params, grads = problem()
    got = run(settings)
    want = each(lambda p, g: adam(p, g))
    np.testing.assert_allclose(got["head"]["kernel"], want["head"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(got["block00"]["bias"], want["block00"]["bias"], rtol=1e-5)
    optimizer = build(settings, params)
    updates, _ = optimizer.update(grads[0], optimizer.init(params), params, hyper=hyper(0.1), step=jnp.int32(0))
    singular = np.linalg.svd(np.asarray(updates["block00"]["kernel"]), compute_uv=False) / 0.2
    assert (singular > 0.6).all() and (singular < 1.3).all(), singular


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    settings = OptimizerSettings(name="sgd", lr=1.0, momentum=0.0, clip=0.5, schedule="constant")
    params, grads = problem()
    optimizer = build(settings, params)
    updates, _ = optimizer.update(grads[0], optimizer.init(params), params, hyper=hyper(1.0), step=jnp.int32(0))
    norm = np.sqrt(sum(np.sum(np.square(u)) for u in jax.tree.leaves(updates)))
    np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_frozen_parameter_stays_and_has_no_state(name):
    settings = OptimizerSettings(name=name, lr=1.0, weight_decay=0.1, rules={"freeze": ((r"block00/.*", True), (".*", False))})
    params, _ = problem()
    after = run(settings, weight_decay=0.1)
    np.testing.assert_array_equal(after["block00"]["kernel"], params["block00"]["kernel"])
    assert not np.array_equal(after["head"]["kernel"], params["head"]["kernel"])
    sizes = [x.shape for x in jax.tree.leaves(build(settings, params).init(params))]
    assert (5, 3) not in sizes


def test_rules_scale_learning_rate_and_decay():
    rules = {"lr": ((r"head/.*", 2.0), (".*", 1.0)), "weight_decay": ((r".*/bias", 1.0), (".*", 0.0))}
    settings = OptimizerSettings(name="sgd", lr=1.0, momentum=0.0, schedule="constant", rules=rules)
    params, grads = problem()
    optimizer = build(settings, params)
    updates, _ = optimizer.update(grads[0], optimizer.init(params), params, hyper=hyper(0.1, 0.5), step=jnp.int32(0))
    g = grads[0]
    np.testing.assert_allclose(updates["head"]["kernel"], -0.2 * g["head"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(
        updates["block00"]["bias"], -0.1 * (g["block00"]["bias"] + 0.5 * params["block00"]["bias"]), rtol=1e-6
    )


def test_the_first_update_of_a_warmup_from_zero_is_zero():
    params, grads = problem()
    optimizer = build(OptimizerSettings(lr=1.0, weight_decay=0.1), params)
    numbers = hyper(1.0, 0.1) | {"warmup_steps": jnp.int32(3)}
    updates, _ = optimizer.update(grads[0], optimizer.init(params), params, hyper=numbers, step=jnp.int32(0))
    assert all((np.asarray(u) == 0).all() for u in jax.tree.leaves(updates))


def test_the_peak_scales_with_the_batch():
    assert OptimizerSettings(base_lr=1.5e-4).peak(4096) == pytest.approx(2.4e-3)
    assert OptimizerSettings(lr=1e-3).peak(4096) == 1e-3


@pytest.mark.parametrize(
    "bad, text",
    [
        (dict(name="lamb", lr=1.0), "unknown optimizer"),
        (dict(lr=1.0, schedule="cosin"), "did you mean"),
        (dict(), "lr"), (dict(lr=1.0, base_lr=1.0), "lr"), (dict(lr=-1.0), "lr=-1.0"), (dict(lr=1.0, b1=1.0), "b1=1.0"),
        (dict(lr=1.0, weight_decay=-0.1), "weight_decay"), (dict(lr=1.0, warmup="5"), "warmup"),
        (dict(lr=1.0, layer_decay=1.5), "layer_decay"), (dict(lr=1.0, rules={"weight_deacy": ()}), "rules.weight_deacy"),
        (dict(lr=1.0, min_lr=-1.0), "min_lr"), (dict(lr=1.0, clip=0.0), "clip"),
        (dict(lr=1.0, rules={"lr": float("nan")}), "rules.lr=nan: write"),
        (dict(lr=1.0, rules={"freeze": "x"}), "rules.freeze"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(bad, text):
    with pytest.raises(UserError) as error:
        OptimizerSettings(**bad)
    assert text in str(error.value) and "\n" not in str(error.value)
