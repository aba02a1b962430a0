"""All attention kernels compute the same, forward and backward, under every restriction they take."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.models import kernels
from ssl_jax.models.attention import allowed, attend

# f32 sums of at most 130 terms, none above 10, in another order.
TOLERANCE = 8e-6


def arrays(batch=2, heads=2, kv_heads=2, queries=40, keys=40, width=16, seed=0):
    keys_ = jax.random.split(jax.random.key(seed), 4)
    shapes = ((batch, heads, queries, width), (batch, kv_heads, keys, width), (batch, kv_heads, keys, width))
    values = [jax.random.normal(key, shape) for key, shape in zip(keys_, shapes, strict=False)]
    return values, jax.random.normal(keys_[3], shapes[0])


def packed(batch, time):
    """Two documents and padding, cut at another place in each row."""
    cut = time // 3 + jnp.arange(batch)[:, None]
    place = jnp.arange(time)[None]
    return jnp.where(place < cut, 1, jnp.where(place < time - 5, 2, 0))


def reference(q, k, v, *, causal=False, window=None, segments=None):
    places = [jnp.arange(x.shape[2])[None] for x in (q, k)]
    return attend(q, k, v, mask=allowed(*places, causal=causal, window=window, q_segments=segments, kv_segments=segments))


def check(function, expected, values, weight):
    """Values and all three gradients agree."""

    def both(q, k, v):
        run = lambda f: jax.vjp(f, q, k, v)
        (y, back), (z, back_reference) = run(function), run(expected)
        return (y, *back(weight)), (z, *back_reference(weight))

    ours, theirs = jax.jit(both)(*values)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("causal", "window", "segmented", "kv_heads"),
    [(False, None, False, 2), (True, None, False, 1), (True, 7, False, 2), (False, 7, False, 2), (True, None, True, 2)],
)
@pytest.mark.parametrize("length", [40, 39])
def test_the_arguments_given_to_cudnn_mean_the_same(causal, window, segmented, kv_heads, length, monkeypatch):
    """Its restrictions, computed by JAX's own reference of the same interface; odd lengths are padded."""
    values, weight = arrays(kv_heads=kv_heads, queries=length, keys=length)
    segments = packed(2, length) if segmented else None
    used = []

    def run(*arguments, **options):
        used.append({name: value for name, value in options.items() if value is not None})
        return cudnn(*arguments, **options, implementation="xla")

    cudnn = kernels.cudnn
    monkeypatch.setattr(kernels, "cudnn", run)
    monkeypatch.setattr(kernels, "choose", lambda *arguments, **options: ("cudnn", "a test"))
    place = jnp.arange(length)[None]
    function = functools.partial(
        kernels.attention, q_positions=place, kv_positions=place, causal=causal, window=window, q_segments=segments,
        kv_segments=segments,
    )  # fmt: skip
    check(function, functools.partial(reference, causal=causal, window=window, segments=segments), values, weight)
    assert ("mask" in used[0]) == (segmented or (window is not None and not causal))


@pytest.mark.parametrize("queries, keys", [(5, 8), (6, 9), (7, 7)])
def test_cudnn_is_never_given_an_odd_length(queries, keys, monkeypatch):
    """Its gradient refuses them: 197 tokens of MAE's decoder, 257 of ViT-H."""
    seen, inner = [], jax.nn.dot_product_attention
    values, weight = arrays(queries=queries, keys=keys)

    def spy(q, k, v, **options):
        seen.extend([q.shape[1], k.shape[1]])
        return inner(q, k, v, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    check(functools.partial(kernels.cudnn, implementation="xla"), reference, values, weight)
    assert seen and not any(n % 2 for n in seen)


@pytest.mark.parametrize(
    ("causal", "window", "segmented", "time", "heads"),
    [
        (True, None, True, 70, (2, 1)),
        pytest.param(False, None, False, 128, (2, 2), marks=pytest.mark.slow),
        pytest.param(True, 20, False, 50, (2, 1), marks=pytest.mark.slow),
        pytest.param(False, 9, True, 70, (1, 1), marks=pytest.mark.slow),
        pytest.param(True, None, True, 128, (4, 2), marks=pytest.mark.slow),
    ],
)
def test_splash_attention_agrees(causal, window, segmented, time, heads):
    """The TPU kernel, interpreted; lengths off its block are padded."""
    values, weight = arrays(1, heads[0], heads[1], time, time, 16)
    segments = packed(1, time) if segmented else None
    options = dict(causal=causal, window=window)
    function = functools.partial(kernels.splash, **options, q_segments=segments, kv_segments=segments, interpret=True)
    check(function, functools.partial(reference, **options, segments=segments), values, weight)


@pytest.mark.slow
def test_splash_attention_takes_a_context_of_another_length():
    values, weight = arrays(1, 1, 1, 20, 130, 16)
    check(functools.partial(kernels.splash, interpret=True), reference, values, weight)


@pytest.mark.parametrize(("causal", "window", "segmented"), list(itertools.product((False, True), (None, 5), (False, True))))
def test_the_default_is_plain_attention_on_a_cpu(causal, window, segmented):
    values, _ = arrays()
    segments = packed(2, 40) if segmented else None
    place = jnp.arange(40)[None]
    ours = kernels.attention(*values, q_positions=place, kv_positions=place, causal=causal, window=window,
                             q_segments=segments, kv_segments=segments)  # fmt: skip
    np.testing.assert_array_equal(ours, reference(*values, causal=causal, window=window, segments=segments))


def choose(kernel="auto", platform="gpu", dtype=jnp.bfloat16, queries=1024, keys=1024, width=64, **options):
    return kernels.choose(kernel, platform, dtype, queries, keys, width, **options)[0]


def test_the_choice():
    assert choose() == "cudnn"
    assert choose(dtype=jnp.float32) == choose(keys=64) == choose(dropout=True) == choose(width=100) == "xla"
    assert choose(queries=1023) == choose(traced_window=True) == choose(prefix=True) == "cudnn"
    assert choose(platform="tpu") == choose(platform="tpu", dtype=jnp.float32) == "splash"
    assert choose(platform="tpu", unsplit=True) == choose(platform="tpu", prefix=True) == "xla"
    assert choose(platform="cpu") == choose(platform="rocm") == "xla"
    assert choose("cudnn", keys=64) == "cudnn" and choose("xla") == "xla"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kernel="cudnn", platform="cpu"), "runs on a GPU, not on cpu"),
        (dict(kernel="cudnn", dtype=jnp.float32), "not in float32"),
        (dict(kernel="splash"), "runs on a TPU, not on gpu"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        choose(**options)


def test_each_choice_is_told_once(caplog):
    kernels._tell.cache_clear()
    values, _ = arrays()
    place = jnp.arange(40)[None]
    with caplog.at_level("INFO", "ssl_jax"):
        for _ in range(3):
            kernels.attention(*values, q_positions=place, kv_positions=place)
    assert [r.getMessage() for r in caplog.records] == ["attention kernel: xla (on cpu)"]
