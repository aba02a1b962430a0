"""SimCLR, VICReg and Barlow Twins against float64 evaluations of their papers' formulas."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.pretext.joint_embedding import JointEmbedding, barlow_twins, nt_xent, vicreg
from tests.pretext.latent_toys import batch_of, loss_of, parameters, slope, task_of


def embeddings(n=7, dim=5, seed=0):
    random = np.random.default_rng(seed)
    a = random.normal(size=(n, dim))
    return np.float32(np.stack([a, a + 0.5 * random.normal(size=(n, dim))]))


def simclr_loss(z, temperature=0.3):
    """Chen et al. 2020, equation 1, term by term; z [2, n, dim]."""
    n = z.shape[1]
    z = z.reshape(2 * n, -1)
    cosine = lambda i, k: z[i] @ z[k] / np.linalg.norm(z[i]) / np.linalg.norm(z[k])
    total = 0.0
    for i in range(2 * n):
        others = sum(np.exp(cosine(i, k) / temperature) for k in range(2 * n) if k != i)
        total -= np.log(np.exp(cosine(i, (i + n) % (2 * n)) / temperature) / others)
    return total / (2 * n)


def vicreg_loss(z):
    """Bardes et al. 2022, equations 1 to 6, with the published code's halves: 25 s + 25 (v + v') / 2 + c + c'."""
    a, b = z
    n, dim = a.shape
    invariance = ((a - b) ** 2).mean()
    hinge = lambda x: np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean()
    covariance = lambda x: np.cov(x.T)
    off = lambda c: (c**2).sum() - (np.diag(c) ** 2).sum()
    return 25 * invariance + 25 * (hinge(a) + hinge(b)) / 2 + (off(covariance(a)) + off(covariance(b))) / dim


def barlow_loss(z):
    """Zbontar et al. 2021, equations 1 and 2, with the epsilon of batch norm."""
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in z)
    c = a.T @ b / len(a)
    return ((1 - np.diag(c)) ** 2).sum() + 0.005 * ((c**2).sum() - (np.diag(c) ** 2).sum())


LOSSES = {
    "nt_xent": (lambda z: nt_xent(z[0], z[1], 0.3), simclr_loss),
    "nt_xent in pieces": (lambda z: nt_xent(z[0], z[1], 0.3, chunks=7), simclr_loss),
    "vicreg": (lambda z: vicreg(z[0], z[1], 25.0, 25.0, 1.0), vicreg_loss),
    "barlow_twins": (lambda z: barlow_twins(z[0], z[1], 0.005), barlow_loss),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_papers(name):
    ours, theirs = LOSSES[name]
    z, direction = embeddings(), embeddings(seed=1)
    loss, gradient = jax.jit(jax.value_and_grad(lambda z: ours(z)[0]))(jnp.asarray(z))
    assert float(loss) == pytest.approx(theirs(np.float64(z)), rel=2e-6)
    assert float(np.sum(np.float64(gradient) * direction)) == pytest.approx(slope(theirs, z, direction), rel=2e-5)


def test_agreement_counts_views_that_find_each_other():
    z, loss = np.eye(4, dtype=np.float32), jax.jit(nt_xent)
    assert loss(z, z, 0.1)[1]["agreement"] == 1
    assert loss(z, z[[1, 0, 2, 3]], 0.1)[1]["agreement"] == 0.5


@pytest.mark.parametrize("loss", ["nt_xent", "vicreg", "barlow_twins"])
def test_the_task_is_encoder_projector_loss(loss):
    """The projector written out in float64: batch norm over the views that go through it together."""
    task = task_of(JointEmbedding, loss=loss, hidden=(12,), outputs=6, temperature=0.3, last_norm=loss == "barlow_twins")
    params, batch = parameters(task), batch_of()
    encode = jax.jit(lambda images: task.features(params, {"image": images})["pooled"])
    pooled = np.stack([encode(batch["pair"][:, i]) for i in range(2)])
    p = jax.tree.map(np.float64, params["projector"])

    def normalised(x, name):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * p[name]["scale"] + p[name]["bias"]

    def project(x):
        x = np.maximum(normalised(np.float64(x) @ p["layer0"]["kernel"], "norm0"), 0) @ p["output"]["kernel"]
        return normalised(x, "output_norm") if loss == "barlow_twins" else x

    z = project(pooled.reshape(12, -1)).reshape(2, 6, -1) if loss == "nt_xent" else np.stack([project(x) for x in pooled])
    expected = {"nt_xent": simclr_loss, "vicreg": vicreg_loss, "barlow_twins": barlow_loss}[loss](z)
    value, metrics = loss_of(task)(params, batch, jax.random.key(0), task.context(params))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    found = task.diagnostics({k: v for k, v in metrics.items() if v.ndim})
    unit = np.float64(pooled[0]) / np.sqrt((np.float64(pooled[0]) ** 2).mean(1, keepdims=True))
    assert float(found["std"]) == pytest.approx(np.sqrt(unit.var(0).mean()), rel=1e-4)


def test_the_temperature_may_follow_a_schedule():
    task = task_of(JointEmbedding, hidden=(8,), outputs=6)
    params, batch = parameters(task), batch_of()
    assert task.scheduled() == {"temperature": 0.5}
    loss, at = loss_of(task), lambda t: task.context(params).replace(numbers={"temperature": jnp.float32(t)})
    assert loss(params, batch, jax.random.key(0), at(0.1))[0] != loss(params, batch, jax.random.key(0), at(0.5))[0]


def test_what_cannot_be_is_refused_in_one_line():
    for keys, said in (
        (dict(loss="infonce"), "task.loss='infonce': must be one of nt_xent, vicreg, barlow_twins"),
        (dict(temperature=0.0), "task.temperature=0.0"),
        (dict(hidden=(0,)), "at least 1"),
        (dict(logit_chunks=4), "task.logit_chunks=4: must divide data.batch_size=6"),
        (dict(batch_size=1), "data.batch_size=1"),
    ):
        with pytest.raises(UserError) as caught:
            task_of(JointEmbedding, **keys)
        assert said in str(caught.value)
    for shapes, said in (
        ({}, "data.views.pair is missing: joint_embedding compares two views of an image"),
        ({"pair": (3, 8, 8, 1)}, "data.views.pair.count=3: must be 2"),
    ):
        with pytest.raises(UserError) as caught:
            task_of(JointEmbedding, shapes={"image": (8, 8, 1)} | shapes)
        assert said in str(caught.value)


SHARDED = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ssl_jax.pretext.joint_embedding import barlow_twins, nt_xent, vicreg
random = np.random.default_rng(0)
z = np.float32(random.normal(size=(16, 12)))
z = np.stack([z, z + np.float32(0.5 * random.normal(size=(16, 12)))])
losses = {
    "nt_xent": lambda z, chunks: nt_xent(z[0], z[1], 0.2, chunks)[0],
    "vicreg": lambda z, chunks: vicreg(z[0], z[1], 25.0, 25.0, 1.0)[0],
    "barlow_twins": lambda z, chunks: barlow_twins(z[0], z[1], 0.005)[0],
}
found = {}
for name, loss in losses.items():
    for devices in (1, 4, 8):
        sharding = NamedSharding(Mesh(jax.devices()[:devices], ("data",)), PartitionSpec(None, "data"))
        for chunks in (1, 4) if name == "nt_xent" else (1,):
            run = jax.jit(jax.value_and_grad(lambda z: loss(z, chunks)), in_shardings=sharding)
            value, gradient = run(jax.device_put(z, sharding))
            found[f"{name} {devices} {chunks}"] = [float(value), np.asarray(gradient).tolist()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_losses_are_equal_on_one_four_and_eight_devices_and_in_pieces(child):
    """The rows of both views lie on different devices; negatives and covariances are those of the global batch all the same."""
    found = json.loads(child(SHARDED, devices=8).splitlines()[-1])
    for key, (value, gradient) in found.items():
        whole, slopes = found[f"{key.split()[0]} 1 1"]
        assert value == pytest.approx(whole, rel=2e-6), key
        np.testing.assert_allclose(gradient, slopes, atol=2e-6 * np.abs(slopes).max(), err_msg=key)
