"""Targets and errors of teacher-based methods against float64 evaluations of their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.pretext import collapse
from ssl_jax.pretext.targets import between_crops, over_patches, sinkhorn_knopp, smooth_l1, standardize


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    e = np.exp(np.float64(x) - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_smooth_l1_is_torchs(beta):
    torch = pytest.importorskip("torch")
    error = 3 * normal(50)
    expected = torch.nn.functional.smooth_l1_loss(torch.tensor(error), torch.zeros(50), beta=beta, reduction="none")
    np.testing.assert_allclose(smooth_l1(jnp.asarray(error), beta), expected, rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda e: smooth_l1(e, beta)))(jnp.asarray(error))
    np.testing.assert_allclose(slope, np.clip(error / beta, -1, 1), rtol=1e-6)


def test_standardize_is_a_layer_norm_without_parameters():
    torch = pytest.importorskip("torch")
    x = 3 + 2 * normal(4, 5, 16)
    np.testing.assert_allclose(standardize(jnp.asarray(x)), torch.nn.functional.layer_norm(torch.tensor(x), (16,)), atol=2e-6)


def test_crops_are_compared_with_all_others_but_themselves():
    """Caron et al. 2021, equation 3: teacher crops q, student crops v, the first two of which are the teacher's."""
    p, logits = softmax(normal(6, 2, 7)), normal(6, 5, 7, seed=1)
    log_q = np.log(softmax(logits))
    terms = [-(p[:, q] * log_q[:, v]).sum(-1).mean() for q in range(2) for v in range(5) if q != v]
    actual = between_crops(jnp.float32(p), jax.nn.log_softmax(jnp.asarray(logits)))
    np.testing.assert_allclose(actual, np.mean(terms), rtol=1e-5)


def test_patches_weigh_within_their_crop():
    """iBOT: a mean over each crop's hidden patches, 0 for a crop without any, then over crops."""
    p, logits = softmax(normal(2, 2, 3, 5)), normal(2, 2, 3, 5, seed=1)
    real = np.float32([[[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 0]]])
    cross = -(p * np.log(softmax(logits))).sum(-1)
    expected = [cross[0, 0].mean(), cross[0, 1, 0], 0.0, cross[1, 1, :2].mean()]
    actual = over_patches(jnp.float32(p), jax.nn.log_softmax(jnp.asarray(logits)), jnp.asarray(real))
    np.testing.assert_allclose(actual, np.mean(expected), rtol=1e-5)


def test_sinkhorn_knopp_is_that_of_its_published_loop():
    """The loop of DINOv2's dino_clstoken_loss.py on prototypes x rows; padding changes nothing."""
    logits, rows, prototypes = 10 * normal(8, 5), 8, 5
    q = np.exp(np.float64(logits)).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * prototypes
        q /= q.sum(0, keepdims=True) * rows
    actual = sinkhorn_knopp(jnp.asarray(logits), None, 3)
    np.testing.assert_allclose(actual, (q * rows).T, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(np.sum(actual, axis=1), 1, rtol=1e-6)
    padded = jnp.concatenate([jnp.asarray(logits), 50 + jnp.zeros((2, 5))])
    weight = jnp.concatenate([jnp.ones(8), jnp.zeros(2)])
    np.testing.assert_allclose(sinkhorn_knopp(padded, weight, 3)[:8], actual, rtol=1e-4, atol=1e-7)
    many = sinkhorn_knopp(jnp.asarray(logits), None, 200)
    np.testing.assert_allclose(np.sum(many, axis=0), 8 / 5, rtol=1e-4)  # all prototypes alike


# Collapse --------------------------------------------------------------------------------------------------------------


def spread(x, weight=None):
    return {k: float(v) for k, v in collapse.spread(collapse.moments(jnp.asarray(x), weight)).items()}


def test_spread_measures_directions():
    x = normal(2000, 8)
    unit = np.float64(x) / np.sqrt(np.mean(np.float64(x) ** 2, axis=1, keepdims=True))
    values = np.linalg.eigvalsh(np.cov(unit.T, bias=True))
    found = spread(x)
    assert found["std"] == pytest.approx(np.sqrt(values.mean()), rel=1e-4) and found["std"] == pytest.approx(1, abs=0.02)
    assert found["effective_rank"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-3)
    assert 7.8 < found["effective_rank"] <= 8
    line = spread(np.outer(normal(500), normal(8, seed=1)))  # all on one line through 0
    assert line["effective_rank"] == pytest.approx(1, abs=1e-3) and line["std"] > 0.9
    point = spread(100 * np.ones((50, 8), np.float32) + 1e-4 * normal(50, 8))
    assert point["std"] < 1e-3
    assert spread(x * np.linspace(1, 50, 2000, dtype=np.float32)[:, None]) == pytest.approx(
        found, rel=1e-3
    )  # lengths are no matter


def test_moments_of_pieces_average_to_those_of_the_whole():
    x, weight = normal(12, 4), np.float32([1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0])
    whole = collapse.moments(jnp.asarray(x), jnp.asarray(weight))
    pieces = [(collapse.moments(jnp.asarray(x[i::3]), jnp.asarray(weight[i::3])), weight[i::3].sum()) for i in range(3)]
    for name, value in whole.items():
        mean = sum(w * piece[name] for piece, w in pieces) / weight.sum()
        np.testing.assert_allclose(mean, value, atol=1e-6)
    assert np.isfinite(collapse.moments(jnp.asarray(x), jnp.zeros(12))["mean"]).all()


def test_prototypes_and_entropies():
    p = np.float32([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]])
    np.testing.assert_allclose(collapse.entropy(jnp.asarray(p)), np.log([2, 2]), rtol=1e-6)
    assert collapse.in_use(jnp.full(6, 1 / 6)) == pytest.approx(6) and collapse.in_use(jnp.eye(4)[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (dict(std=0.001), "the features of all images are nearly the same (std=0.001"),
        (dict(std=0.5, embedding_std=0.01), "the embeddings of all images are nearly the same (embedding_std=0.01"),
        (dict(std=0.5, prototypes_in_use=1.2), "nearly all images have the same target (prototypes_in_use=1.2 of 64)"),
        (dict(std=0.5, prototypes_in_use=50.0, target_entropy=4.158), "the targets are the same for all prototypes"),
        (dict(std=0.5, prototypes_in_use=50.0, target_entropy=2.0), None),
        (dict(loss=1.0), None),
    ],
)
def test_a_collapsed_run_is_named_in_one_line(metrics, said):
    line = collapse.verdict(metrics, prototypes=64)
    assert line is None if said is None else (line.startswith("collapsed: ") and said in line and "\n" not in line)
