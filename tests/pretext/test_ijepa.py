"""I-JEPA's loss against a float64 evaluation of its formula, from the encoder's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.pretext.ijepa import IJEPA, of_targets
from ssl_jax.randomness import example_keys, substream
from tests.pretext.latent_toys import batch_of, loss_of, parameters, task_of, teacher_gradient

PREDICTOR = dict(width=8, depth=1, heads=2)


@pytest.fixture(scope="module")
def given():
    """A task, the student's and another parameters as its teacher's, a batch."""
    task = task_of(IJEPA, predictor=PREDICTOR, mask=dict(min_keep=10, kept=1.0))
    return task, parameters(task), parameters(task, 1), batch_of()


def test_the_loss_is_the_papers(given):
    """Smooth L1 between predictions and layer-normed teacher tokens, a mean over patches of targets (section 3)."""
    task, params, teacher, batch = given
    key = jax.random.key(3)
    loss, metrics = loss_of(task)(params, batch, key, task.context(teacher))

    @jax.jit
    def parts(params, teacher):
        keys = example_keys(key, batch["position"])
        blocks = task.config.mask(substream(key, "blocks"), substream(keys, "blocks"), task.encoder.grid)
        seen = task.encode(params, batch["image"], visible=blocks.context, segments=blocks.seen)
        return blocks, task.encode(teacher, batch["image"]), task.predict(params, seen, blocks)

    blocks, whole, predicted = jax.tree.map(lambda x: np.asarray(x, np.float64), parts(params, teacher))
    assert 0 < blocks.valid.sum() < 6  # some contexts are too small, and count nothing
    terms = []
    for b in range(6):
        target = (whole[b] - whole[b].mean(-1, keepdims=True)) / np.sqrt(whole[b].var(-1, keepdims=True) + 1e-5)
        for m in range(4):
            for place, patch in enumerate(blocks.targets[b, m].astype(int)):
                if blocks.valid[b] and blocks.real[place]:
                    error = np.abs(predicted[b, m, place] - target[patch])
                    terms.append(np.where(error < 1, error**2 / 2, error - 0.5).mean())
    assert float(loss) == pytest.approx(np.mean(terms), rel=2e-5) and float(metrics["weight"]) == len(terms)
    share = blocks.seen.sum(1)[blocks.valid > 0].mean() / 16
    assert float(metrics["context"]) == pytest.approx(share, rel=1e-5)


def test_the_teacher_gets_no_gradient_and_the_student_does(given):
    task, params, teacher, batch = given
    assert teacher_gradient(task, params, teacher, batch) == 0.0
    loss = lambda p: task.loss(p, batch, jax.random.key(0), train=True, context=task.context(teacher))[0]
    grads = jax.jit(jax.grad(loss))(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads["encoder"]["stack"]["block00"]["mlp"]))


def test_the_encoder_sees_no_target_and_no_padding(given):
    """Changing the pixels of all patches outside the context changes no prediction."""
    task, params, _, batch = given
    key = jax.random.key(3)

    @jax.jit
    def draw(key):
        keys = example_keys(key, batch["position"])
        return task.config.mask(substream(key, "blocks"), substream(keys, "blocks"), task.encoder.grid)

    blocks = draw(key)

    def predictions(images):
        return task.predict(params, task.encode(params, images, visible=blocks.context, segments=blocks.seen), blocks)

    inside = np.zeros((6, 16), bool)
    for b in range(6):
        inside[b, np.asarray(blocks.context[b])[np.asarray(blocks.seen[b]) > 0]] = True
    pixels = inside.reshape(6, 4, 4).repeat(2, 1).repeat(2, 2)[..., None]
    other = jnp.where(pixels, batch["image"], 7.0 * batch_of(6, 5)["image"])
    before, after = jax.jit(predictions)(batch["image"]), jax.jit(predictions)(other)
    real = np.asarray(blocks.real) > 0
    np.testing.assert_allclose(np.asarray(before)[:, :, real], np.asarray(after)[:, :, real], atol=1e-5)


def test_targets_are_the_tokens_at_their_places(given):
    task, _, _, batch = given
    draw = jax.jit(task.config.mask, static_argnums=2)
    blocks = draw(jax.random.key(1), jax.random.split(jax.random.key(2), 6), task.encoder.grid)
    tokens = jnp.arange(6 * 16.0).reshape(6, 16, 1)
    np.testing.assert_array_equal(of_targets(tokens, blocks)[..., 0], 16 * np.arange(6)[:, None, None] + blocks.targets)


def test_what_cannot_be_is_refused_in_one_line():
    for keys, said in (
        (dict(predictor=dict(width=6, heads=2)), "task.predictor.width=6: must be a multiple of 4"),
        (dict(mask=dict(min_keep=15)), "task.mask.min_keep=15: a context holds at most 8 of the 4 x 4 patches"),
        (dict(masks={}), "unknown key task.masks; did you mean task.mask?"),
    ):
        with pytest.raises(UserError) as caught:
            task_of(IJEPA, **keys)
        assert said in str(caught.value)
