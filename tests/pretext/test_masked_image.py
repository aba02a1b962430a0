"""Masked image modelling against the equations of the papers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.models.patches import patchify
from ssl_jax.pretext.masked_image import MaskedImage, moments, principal_components
from ssl_jax.task import Context, DataInfo, Task
from tests.keys import toy_key

KEY = jax.random.key(3)
INFO = DataInfo({"image": jax.ShapeDtypeStruct((8, 12, 2), jnp.float32)}, mean=(0.4, 0.5), std=(0.2, 0.3))


def batch(n: int = 4, seed: int = 0) -> dict:
    images = np.random.default_rng(seed).normal(size=(n, 8, 12, 2)).astype(np.float32)
    return {"image": jnp.asarray(images), "position": jnp.arange(n)}


def build(model: dict | None = None, info: DataInfo = INFO, dtype: str = "float32", **task) -> MaskedImage:
    config = ConfigDict(
        dict(
            task=dict(name="masked_image", decoder=dict(width=16, depth=1, heads=2)) | task,
            model=dict(name="vit", width=16, depth=1, heads=2, patch_size=4) | (model or {}),
            training=dict(dtype=dtype),
        )
    )
    return MaskedImage.from_config(config, info)


ARMS = {
    "mae": dict(),
    "normalized": dict(target="normalized_pixels"),
    "pca": dict(target="pca", components=5),
    "all": dict(loss_on="all"),
    "l1": dict(loss="l1"),
    "tokens in the encoder": dict(mask_tokens_in_encoder=True),
    "simmim": dict(mask_tokens_in_encoder=True, loss="l1", decoder=dict(depth=0)),
    "block": dict(mask=dict(kind="block", ratio=0.5)),
    "grid": dict(mask=dict(kind="grid", ratio=0.5)),
}


def fitted(task, data):
    """(parameters, context with the PCA basis of these images)."""
    params = jax.jit(task.init)(toy_key(3), data)
    return params, Context(variables=task.fit(task.variables(params), lambda count: data))


def patches_of(images: np.ndarray) -> np.ndarray:
    """f64[batch, 6, 32] by explicit cutting."""
    cut = [images[:, r : r + 4, c : c + 4].reshape(len(images), -1) for r in (0, 4) for c in (0, 4, 8)]
    return np.stack(cut, axis=1).astype(np.float64)


@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_is_the_papers_equation_in_float64(arm):
    task, data = build(**ARMS[arm]), batch()
    params, context = fitted(task, data)
    out = jax.device_get(jax.jit(task.forward)(params, data | {"noise": jax.random.uniform(KEY, (4, 6))}, context))
    target = patches_of(np.asarray(data["image"]))
    if task.config.target == "normalized_pixels":  # the variance of torch, unbiased
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
    if task.config.target == "pca":
        flat = target.reshape(-1, 32)
        basis = np.linalg.svd(flat - flat.mean(0))[2][:5].T
        ours = np.asarray(context.variables["basis"], np.float64)
        np.testing.assert_allclose(np.abs(np.sum(basis * ours, axis=0)), 1, atol=1e-4)  # the same axes, up to their signs
        target = (target - flat.mean(0)) @ ours
    error = out["pred"].astype(np.float64) - target
    error = (np.abs(error) if task.config.loss == "l1" else error**2).mean(-1)
    hidden = out["mask"] if task.config.loss_on == "masked" else np.ones_like(out["mask"])
    assert out["mask"].sum() == 4 * (6 - task.config.mask.kept((2, 3)))
    np.testing.assert_allclose(out["loss"], (error * hidden).sum() / hidden.sum(), rtol=2e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_visible_pixels_alone_decide_the_prediction(arm):
    task, data = build(**ARMS[arm]), batch()
    params = jax.jit(task.init)(toy_key(3), data)
    mask = task.config.mask(jax.random.split(KEY, 4), (2, 3))
    spoiled = jnp.where(mask.hidden[..., None], 50.0, patchify(data["image"], (4, 4)))
    images = spoiled.reshape(4, 2, 3, 4, 4, 2).swapaxes(2, 3).reshape(4, 8, 12, 2)
    predict = jax.jit(task.predict)
    np.testing.assert_array_equal(predict(params, data["image"], mask), predict(params, images, mask))


@pytest.mark.parametrize("arm", ARMS)
def test_every_trained_parameter_gets_a_gradient_and_a_few_steps_reduce_the_loss(arm):
    task, data = build(**ARMS[arm]), batch()
    params, context = fitted(task, data)
    assert isinstance(task, Task)
    step = jax.jit(jax.value_and_grad(lambda p: task.loss(p, data, KEY, train=True, context=context)[0]))
    first, gradient = step(params)
    for path, g in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        unread = arm == "simmim" and "class_token" in str(path)
        assert np.any(g) or unread or "key" in str(path), path  # a key's bias shifts all scores alike
    for _ in range(40):
        loss, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    assert loss < 0.95 * first


def test_masks_differ_between_examples_and_steps_but_not_between_batch_splits():
    task, data = build(), batch(8)
    params = jax.jit(task.init)(toy_key(3), data)
    compute = jax.jit(task.loss, static_argnames="train")
    whole, _ = compute(params, data, KEY, train=True)
    parts = [compute(params, jax.tree.map(lambda x, i=i: x[i : i + 4], data), KEY, train=True)[0] for i in (0, 4)]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-6)
    other, _ = compute(params, data, jax.random.key(4), train=True)
    assert not np.allclose(whole, other)


def test_evaluation_masks_but_drops_nothing():
    task, data = build(model=dict(dropout=0.5, drop_path=0.5, depth=2)), batch()
    params = jax.jit(task.init)(toy_key(3), data)
    compute = lambda task, train: float(jax.jit(task.loss, static_argnames="train")(params, data, KEY, train=train)[0])
    assert compute(task, False) != compute(task, True)
    quiet = build(model=dict(depth=2))
    assert compute(task, False) == pytest.approx(compute(quiet, True), rel=1e-6)


def test_flat_patches_normalise_to_zero():
    mean, deviation = moments(jnp.ones((1, 1, 32)))
    assert float(mean[0, 0, 0]) == 1 and float(deviation[0, 0, 0]) == pytest.approx(1e-3)


def test_principal_components_are_orthonormal_and_in_order():
    patches = jax.random.normal(KEY, (8, 6, 32)) * jnp.linspace(1, 5, 32)
    found = principal_components(patches, 7)
    np.testing.assert_allclose(found["basis"].T @ found["basis"], np.eye(7), atol=1e-5)
    variance = np.var((patches.reshape(-1, 32) - found["mean"]) @ found["basis"], axis=0)
    assert np.all(np.diff(variance) < 0)


@pytest.mark.parametrize("arm", ["mae", "normalized", "pca", "simmim"])
def test_a_perfect_prediction_reconstructs_the_image(arm, monkeypatch):
    """Pictures undo the target and the normalisation; with the target itself as prediction they show the original."""
    task, data = build(**ARMS[arm] | (dict(components=32) if arm == "pca" else {})), batch()
    pixels = np.random.default_rng(1).uniform(size=(4, 8, 12, 2))
    data["image"] = jnp.asarray((pixels - INFO.mean) / INFO.std, jnp.float32)
    params, context = fitted(task, data)
    monkeypatch.setattr(MaskedImage, "predict", lambda self, params, images, mask: self.target(images, context))
    panel = dataclasses.replace(task).panels(params, data, KEY, context=context)["reconstruction"]
    plain = ("plain",) if arm == "normalized" else ()  # without what is not predicted
    assert panel.columns == ("original", "masked", "reconstruction", "reconstruction + visible", *plain)
    assert bool(panel.note) is (arm == "normalized")
    for column in (0, 2, 3):
        np.testing.assert_allclose(panel.array[:, column], pixels, atol=1e-4)
    grey = np.all(panel.array[:, 1] == 0.5, axis=-1).mean()
    assert grey == pytest.approx(1 - task.config.mask.kept((2, 3)) / 6)


@pytest.mark.slow
def test_scan_and_remat_change_no_value():
    """The encoder's blocks compiled once, and recomputed in the backward pass (the stack's own tests have every pair)."""
    data, plain = batch(), build(model=dict(depth=2, drop_path=0.3))
    other = build(model=dict(depth=2, drop_path=0.3, scan=True, remat="full"))
    params = jax.jit(plain.init)(toy_key(3), data)
    value = lambda task: jax.jit(jax.value_and_grad(lambda p: task.loss(p, data, KEY, train=True)[0]))(params)
    for a, b in zip(jax.tree.leaves(value(plain)), jax.tree.leaves(value(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_stays_near_float32():
    data, exact, rounded = batch(), build(), build(dtype="bfloat16")
    params = jax.jit(exact.init)(toy_key(3), data)
    losses = [float(jax.jit(t.loss, static_argnames="train")(params, data, KEY, train=True)[0]) for t in (exact, rounded)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(rounded.init, KEY, data)))


def test_flops_by_hand():
    """ViT-B/16 on 49 visible patches and the default decoder: 9.7 GMACs a forward pass."""
    info = DataInfo({"image": jax.ShapeDtypeStruct((224, 224, 3), jnp.float32)})
    task = build(model=dict(width=768, depth=12, heads=12, patch_size=16), info=info, decoder=dict())

    def blocks(tokens, width, depth):
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    macs = 49 * 768 * 768 + blocks(50, 768, 12) + 50 * 768 * 512 + blocks(197, 512, 8) + 196 * 512 * 768
    assert task.flops() == 3 * 2 * macs


@pytest.mark.parametrize("options, message", [
    (dict(model=dict(patch_size=5)), "model.patch_size=5 does not divide the image, 8 x 12; use 1, 2 or 4"),
    (dict(mask=dict(ratio=1)), "task.mask.ratio=1.0: must lie in (0, 1)"),
    (dict(mask_ratio=0.5), "unknown key task.mask_ratio; did you mean task.mask.ratio?"),
    (dict(mask=dict(ratio=0.9)), "task.mask.ratio=0.9 leaves 0 of 6 patches visible; choose one nearer 0.5"),
    (dict(target="pca", components=40), "task.components=40: must lie in [1, 32], the size of a patch"),
    (dict(decoder=dict(depth=0)),
     "task.decoder.depth=0: a linear decoder sees no hidden patch; set mask_tokens_in_encoder=True"),
    (dict(model=dict(name="transformer")), "model.name='transformer': does not read images; use vit"),
])  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError) as error:
        build(**options)
    assert str(error.value) == message
