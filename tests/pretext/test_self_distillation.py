"""DINO and iBOT against float64 evaluations of their formulas, from the encoder's pooled outputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.pretext.patch_masking import hidden_blocks
from ssl_jax.pretext.self_distillation import SelfDistillation
from ssl_jax.randomness import example_keys
from tests.pretext.latent_toys import batch_of, loss_of, parameters, task_of, teacher_gradient

SMALL = dict(prototypes=7, hidden=6, bottleneck=5)
ROWS = 5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def scores(head, x):
    """Caron et al. 2021, appendix C: three layers, a unit vector, its products with unit prototypes."""
    x = gelu(x @ head["layer0"]["kernel"] + head["layer0"]["bias"])
    x = gelu(x @ head["layer1"]["kernel"] + head["layer1"]["bias"])
    x = x @ head["layer2"]["kernel"] + head["layer2"]["bias"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True) @ (head["prototypes"] / np.linalg.norm(head["prototypes"], axis=0))


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def encoded(task, params, images, hidden=None):
    """(patch tokens [rows, views, patches, width], pooled [rows, views, width]) in float64."""

    @jax.jit
    def run(images, hidden):
        tokens, found = task.encoder.apply({"params": params["encoder"]}, images, mask=hidden)
        return tokens[:, 1:], found["pooled"]

    flat = images.reshape(-1, *images.shape[2:])
    out = run(flat, None if hidden is None else hidden.reshape(len(flat), -1))
    return float64([x.reshape(*images.shape[:2], *x.shape[1:]) for x in out])


@pytest.fixture(scope="module")
def given():
    task = task_of(SelfDistillation, **SMALL, patches=dict(prob=0.7, ratio=(0.2, 0.5), weight=0.5, shared_head=False))
    return task, parameters(task), parameters(task, 1), batch_of(ROWS)


def test_the_loss_is_the_papers(given):
    """Caron et al. 2021, equations 1 to 3, plus half of Zhou et al. 2022, equation 2, with centres and temperatures set."""
    task, params, teacher, batch = given
    random = np.random.default_rng(0)
    variables = {name: random.normal(size=7) * 0.1 for name in ("centre", "patch_centre")}
    numbers = {"teacher_temperature": 0.05, "patch_temperature": 0.07}
    context = task.context(teacher).replace(variables=jax.tree.map(jnp.float32, variables), numbers=numbers)
    loss, metrics = loss_of(task)(params, batch, jax.random.key(0), context)

    hidden = jax.jit(lambda: task.hidden(example_keys(jax.random.key(0), batch["position"]), batch["globals"]))()
    seen, pooled = encoded(task, teacher, batch["globals"])
    tokens, mine = encoded(task, params, batch["globals"], hidden.hidden)
    mine = np.concatenate([mine, encoded(task, params, batch["locals"])[1]], axis=1)
    student, teacher = float64(params), float64(teacher)
    logits = scores(teacher["head"], pooled)
    target = softmax((logits - variables["centre"]) / 0.05)
    log_p = np.log(softmax(scores(student["head"], mine) / 0.1))
    crops = np.mean([-(target[:, q] * log_p[:, v]).sum(-1).mean() for q in range(2) for v in range(5) if q != v])
    patch_logits = scores(teacher["patch_head"], seen)
    cross = softmax((patch_logits - variables["patch_centre"]) / 0.07)
    cross = -(cross * np.log(softmax(scores(student["patch_head"], tokens) / 0.1))).sum(-1)
    mask = np.asarray(hidden.hidden)
    patches = np.mean([[cross[b, v][mask[b, v]].mean() if mask[b, v].any() else 0 for v in range(2)] for b in range(ROWS)])
    assert float(metrics["crops"]) == pytest.approx(crops, rel=3e-5)
    assert float(metrics["patches"]) == pytest.approx(patches, rel=3e-5)
    assert float(loss) == pytest.approx(crops + 0.5 * patches, rel=3e-5)
    entropy = -(target * np.log(target)).sum(-1).mean()
    assert float(metrics["target_entropy"]) == pytest.approx(entropy, rel=1e-4)
    np.testing.assert_allclose(metrics["centre"], logits.mean((0, 1)), atol=2e-5)
    np.testing.assert_allclose(metrics["patch_centre"], patch_logits.mean((0, 1, 2)), atol=2e-5)  # of all patches
    moved = task.after_update(params, context.variables, {k: v for k, v in metrics.items() if v.ndim}, context)[1]
    for name, mean in (("centre", logits.mean((0, 1))), ("patch_centre", patch_logits.mean((0, 1, 2)))):
        np.testing.assert_allclose(moved[name], 0.9 * variables[name] + 0.1 * mean, atol=1e-5)  # equation 4
    used = np.exp(-(target.mean((0, 1)) * np.log(target.mean((0, 1)))).sum())
    found = task.diagnostics({k: v for k, v in metrics.items() if v.ndim})
    assert float(found["prototypes_in_use"]) == pytest.approx(used, rel=1e-4)


def test_the_teacher_gets_no_gradient(given):
    task, params, teacher, batch = given
    assert teacher_gradient(task, params, teacher, batch) == 0.0


def test_sinkhorn_targets_relate_the_batch_and_use_all_prototypes_alike():
    task = task_of(SelfDistillation, **SMALL, centring="sinkhorn", sinkhorn_iterations=50)
    params, batch = parameters(task), batch_of(8)
    assert task.relates_examples and not task.variables(params)
    metrics = loss_of(task)(params, batch, jax.random.key(0), task.context(params))[1]
    np.testing.assert_allclose(metrics["target"], 1 / 7, rtol=1e-2)
    assert not task_of(SelfDistillation, **SMALL).relates_examples


def test_blocks_hide_the_wanted_share_half_of_the_time():
    """Zhou et al. 2022, appendix: a share uniform in (0.1, 0.5) with probability one half."""
    keys = jax.random.split(jax.random.key(0), 1000)
    blocks = jax.jit(jax.vmap(lambda key: hidden_blocks(key, (14, 14), (0.1, 0.5), 0.5)))(keys)
    hidden, count = np.asarray(blocks.hidden), np.asarray(blocks.hidden).sum(1)
    assert 0.42 < (count > 0).mean() < 0.58
    share = count[count > 0] / 196
    assert share.min() >= 0.1 - 0.003 and share.max() <= 0.5 and abs(share.mean() - 0.3) < 0.02
    for i in range(50):
        places = np.asarray(blocks.places[i])[np.asarray(blocks.real[i]) > 0]
        assert set(places.tolist()) == set(np.flatnonzero(hidden[i]).tolist())
    grid = hidden[count > 0].reshape(-1, 14, 14)
    together = (grid[:, 1:] & grid[:, :-1]).sum() / grid[:, 1:].sum()
    assert together > share.mean() + 0.25  # blocks, not single patches


def test_what_cannot_be_is_refused_in_one_line():
    for keys, said in (
        (dict(centring="batch"), "task.centring='batch': must be one of mean, sinkhorn, None"),
        (dict(patches=dict(ratio=(0.5, 0.1))), "task.patches.ratio=(0.5, 0.1)"),
        (dict(teacher_temperature=0.0), "must be above 0"),
        (dict(shapes={"image": (8, 8, 1)}), "data.views.globals is missing: self_distillation compares crops"),
        (dict(shapes={"image": (8, 8, 1), "globals": (1, 8, 8, 1)}), "data.views.globals.count=1: must be at least 2"),
        (dict(shapes={"image": (8, 8, 1), "globals": (2, 8, 8, 1), "locals": (2, 5, 5, 1)}), "an image of 5 x 5"),
    ):
        with pytest.raises(UserError) as caught:
            task_of(SelfDistillation, **keys)
        assert said in str(caught.value)
