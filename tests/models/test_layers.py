"""The transformer's parts: what a token may see, what randomness depends on, and ways to compile that change no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm as normal

from ssl_jax import target
from ssl_jax.errors import UserError
from ssl_jax.models import dense, layers
from ssl_jax.models.layers import ACTIVATIONS, Norm, Stack, TransformerSettings, drop_path, dropout, rotate
from tests.keys import toy_key

KEY = jax.random.key(0)


def config(**options) -> TransformerSettings:
    return TransformerSettings(**{"width": 16, "depth": 2, "heads": 4} | options)


def build(causal: bool = False, **options):
    stack = Stack(config(**options), causal=causal)
    x = jax.random.normal(KEY, (2, 6, 16))
    return stack, jax.jit(stack.init)(toy_key(1), x), x


def run(stack, params, x, **options):
    """The last output, compiled."""
    return jax.jit(lambda p, x, o: stack.apply(p, x, **o)[0])(params, x, options)


VARIANTS = [
    dict(),
    dict(kv_heads=2, rope_theta=100.0, qk_norm=True, norm="rms", gated=True, activation="silu"),
    dict(norm_position="post", layer_scale=0.5),
]


@pytest.mark.parametrize("options", VARIANTS)
def test_a_causal_stack_does_not_look_ahead(options):
    """Changing token j changes every output from j on and none before."""
    stack, params, x = build(causal=True, **options)
    apply = jax.jit(lambda x: stack.apply(params, x)[0])
    for j in (0, 3, 5):
        difference = np.abs(apply(x) - apply(x.at[:, j].add(1.0))).max((0, 2))
        assert not np.any(difference[:j]) and np.all(difference[j:] > 0)


@pytest.mark.parametrize("window, every, reach", [(1, 1, 2), (1, 3, 5)])
def test_a_window_bounds_what_one_block_reads(window, every, reach):
    """Two local blocks of window 1 reach two tokens; where the first of them is global, all tokens."""
    stack, params, x = build(window=window, global_every=every)
    apply = jax.jit(lambda x: stack.apply(params, x)[0])
    difference = np.abs(apply(x) - apply(x.at[:, 0].add(1.0))).max((0, 2))
    assert np.all(difference[: reach + 1] > 0) and not np.any(difference[reach + 1 :])


@pytest.mark.parametrize("options", VARIANTS)
def test_a_cache_gives_what_the_whole_sequence_gives(options):
    stack, params, x = build(causal=True, **options)
    whole = run(stack, params, x)
    heads = options.get("kv_heads", 4)
    empty = lambda: {
        "key": jnp.zeros((2, heads, 6, 4)),
        "value": jnp.zeros((2, heads, 6, 4)),
        "length": jnp.zeros((), jnp.int32),
    }
    caches, parts = [empty() for _ in range(2)], []
    step = jax.jit(lambda x, positions, caches: stack.apply(params, x, positions=positions, caches=caches))
    for start, stop in ((0, 3), (3, 6)):
        y, blocks = step(x[:, start:stop], jnp.arange(start, stop)[None], caches)
        caches = blocks["caches"]
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(drop_path=0.4, dropout=0.1), dict(window=1, global_every=2, rope_theta=9.0)])
def test_scan_and_remat_change_no_value(options):
    stack, params, x = build(**options)
    keys = jax.random.split(KEY, 2)

    def value(stack):
        loss = lambda p: jnp.sum(jnp.sin(stack.apply(p, x, keys=keys)[0]))
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = value(stack)
    for scan, remat in ((True, "none"), (True, "full"), (False, "full"), (False, "dots")):
        other = Stack(config(**options, scan=scan, remat=remat))
        assert jax.tree.structure(jax.eval_shape(other.init, KEY, x)) == jax.tree.structure(params)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(value(other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("options", [dict(), dict(scan=True), dict(remat="full"), dict(layer_scale=0.5, depth=1)])
def test_branches_are_what_each_block_adds_to_its_input(options):
    stack, params, x = build(**options)
    _, found = jax.jit(lambda p, x: stack.apply(p, x, branches=True))(params, x)
    before = x
    for i in range(stack.config.depth):
        assert np.any(found[f"block{i:02d}/mlp"])
        before = before + found[f"block{i:02d}/attention"] + found[f"block{i:02d}/mlp"]
        np.testing.assert_allclose(before, found[f"block{i:02d}"], atol=2e-6)
    assert set(jax.eval_shape(stack.apply, params, x)[1]) == {f"block{i:02d}" for i in range(stack.config.depth)}


def test_post_norm_branches_are_taken_before_the_residual():
    """data2vec's targets: the MLP's output, to which the residual is added and of which the norm is taken."""
    stack, params, x = build(norm_position="post", depth=1)
    _, found = jax.jit(lambda p, x: stack.apply(p, x, branches=True))(params, x)
    block = params["params"]["block00"]
    norm = lambda y, name: Norm().apply({"params": block[name]}, y)
    middle = norm(x + found["block00/attention"], "attention_norm")
    np.testing.assert_allclose(norm(middle + found["block00/mlp"], "mlp_norm"), found["block00"], atol=2e-6)


@pytest.mark.parametrize("options, windows", [
    (dict(), {5}), (dict(remat="full"), {5}), (dict(scan=True), {5}), (dict(remat="dots", global_every=2), {None, 5}),
    (dict(scan=True, global_every=2), {"traced"}),
])  # fmt: skip
def test_the_window_is_known_when_attention_chooses_its_kernel(options, windows, monkeypatch):
    """Under remat too; a fused kernel must know it. Only a scan over blocks that differ has to trace it."""
    seen = set()

    def attention(q, k, v, *, window, **others):
        seen.add(window if window is None or isinstance(window, int) else "traced")
        return q

    stack, params, x = build(window=5, **options)
    monkeypatch.setattr(layers, "attention", attention)
    jax.eval_shape(stack.apply, params, x)
    assert seen == windows


def test_random_parts_depend_on_the_examples_key_only():
    """A batch split in two gives the same values; the blocks draw differently."""
    stack, params, x = build(dropout=0.3, attention_dropout=0.3, drop_path=0.3)
    keys = jax.random.split(KEY, 2)
    whole = run(stack, params, x, keys=keys)
    np.testing.assert_allclose(run(stack, params, x[1:], keys=keys[1:]), whole[1:], atol=1e-5)
    assert np.abs(whole - run(stack, params, x)).max() > 0.1


def test_dropout_and_drop_path_keep_the_mean():
    keys, ones = jax.random.split(KEY, 5000), jnp.ones((5000, 3))
    dropped, path = dropout(ones, 0.25, keys, "a"), drop_path(ones, 0.25, keys, "a")
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert np.all(path == path[:, :1]) and float(path.mean()) == pytest.approx(1, abs=0.04)
    assert not np.array_equal(dropped, dropout(ones, 0.25, keys, "b"))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_are_their_equations(kind):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 9))
    module = Norm(kind, eps=1e-3)
    params = jax.jit(module.init)(toy_key(0), jnp.asarray(x, jnp.float32))
    centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(module.apply(params, jnp.asarray(x, jnp.float32)), expected, atol=2e-6)


def test_activations_are_their_equations():
    x = np.linspace(-6, 6, 101).astype(np.float32)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.asarray(x)), x * normal.cdf(x), atol=2e-6)
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), atol=2e-6)
    np.testing.assert_allclose(ACTIVATIONS["relu_squared"](jnp.asarray(x)), np.maximum(x, 0) ** 2, atol=2e-6)


def test_rotary_scores_depend_on_the_distance_only():
    q, k = jax.random.normal(KEY, (1, 1, 1, 8)), jax.random.normal(jax.random.key(1), (1, 1, 1, 8))
    score = lambda i, j: jnp.sum(rotate(q, jnp.full((1, 1), i), 50.0) * rotate(k, jnp.full((1, 1), j), 50.0))
    np.testing.assert_allclose(score(3, 1), score(12, 10), rtol=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    np.testing.assert_allclose(rotate(q, jnp.zeros((1, 1), jnp.int32), 50.0), q, atol=1e-6)


def test_flops_by_hand():
    """Width 16, 4 heads of 4, one block, 6 tokens: projections 4, scores and values 2, MLP 8 (in units of 2 x tokens x ...)."""
    expected = 2 * 6 * 4 * 16 * 16 + 2 * 2 * 6 * 6 * 16 + 2 * 6 * 8 * 16 * 16
    assert config(depth=1).flops_forward(6) == expected
    assert config(depth=1).flops_forward(6) - config(depth=1).flops_forward(6, causal=True) == 2 * 6 * 6 * 16
    assert config(depth=5).flops_forward(6) == 5 * expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dense_layers_own_gradient_is_autodiffs(dtype):
    x, layer = jax.random.normal(KEY, (3, 5, 7)), dense.Dense(4, use_bias=dtype == "float32", dtype=dtype)
    params = jax.jit(layer.init)(toy_key(0), x)
    value = lambda p, x: jnp.sum(jnp.sin(layer.apply(p, x).astype(jnp.float32)))
    ours = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(params, x)
    with target.told(target.Target("gpu")):
        theirs = jax.jit(jax.value_and_grad(lambda p, x: value(p, x), argnums=(0, 1)))(params, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("options, message", [
    (dict(width=30, heads=4), r"heads=4 does not divide width=30; use one of \[1, 2, 3, 5, 6, 10, 15, 30\]"),
    (dict(depth=0), "depth=0: must be at least 1"), (dict(kv_heads=3), "kv_heads=3 must divide heads=4"),
    (dict(dropout=1.0), r"dropout=1.0: must lie in \[0, 1\)"), (dict(activation="gelus"), "activation='gelus': must be one of"),
    (dict(width=12, heads=4, rope_theta=10.0), "head width 3 is odd"),
])  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)


@pytest.mark.slow
def test_the_gradient_of_a_stack_costs_the_same_for_every_block():
    """By XLA's count. Where each block's gradient sums the branches above it again, deeper ones cost more."""

    def flops(depth):
        stack = Stack(config(depth=depth, width=32))
        x = jnp.zeros((4, 8, 32))
        params = jax.eval_shape(stack.init, KEY, x)
        total = lambda p, x: jnp.sum(jnp.square(stack.apply(p, x)[0]))
        return jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, x).compile().cost_analysis()["flops"]

    two, four, six = (flops(depth) for depth in (2, 4, 6))
    assert six - four == pytest.approx(four - two, rel=0.01)
