"""The classification task: what it starts from, what is trained, what its loss is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.data.images.augment import Mix
from ssl_jax.downstream.supervised.classification import Classification, ClassificationSettings
from ssl_jax.downstream.supervised.freezing import freeze, partial
from ssl_jax.errors import UserError
from ssl_jax.randomness import example_keys
from ssl_jax.task import DataInfo
from ssl_jax.training import optimizer, rules
from tests.keys import toy_key

MODEL = dict(name="vit", patch_size=4, width=16, depth=3, heads=2)


def info(size=8, classes=("a", "b", "c")):
    image = jax.ShapeDtypeStruct((size, size, 1), jnp.float32)
    return DataInfo({"image": image, "label": jax.ShapeDtypeStruct((), jnp.int32)}, classes, (0.5,), (0.5,))


def config(model=None, **task):
    section = dict(name="classification", **task)
    return ConfigDict(dict(task=section, model=MODEL | (model or {}), training=dict(dtype="float32")))


def task(size=8, model=None, **settings):
    return Classification.from_config(config(model, **settings), info(size))


def batch(size=8, count=6, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(random.standard_normal((count, size, size, 1)), jnp.float32),
        "label": jnp.arange(count, dtype=jnp.int32) % 3,
        "position": jnp.arange(count, dtype=jnp.int32),
    }


def test_mean_pooling_has_its_own_norm_and_no_final_one_and_cls_the_other_way_round():
    mean, cls = (fresh(task(pooling=p))["encoder"] for p in ("mean", "cls"))
    assert "pooled_norm" in mean and "final_norm" not in mean
    assert "final_norm" in cls and "pooled_norm" not in cls


def fresh(t, size=8):
    return jax.jit(t.init)(toy_key(0), batch(size))


def test_the_head_starts_small():
    head = fresh(task())["head"]["kernel"]
    assert 1e-5 < float(jnp.std(head)) < 4e-5
    assert 0.05 < float(jnp.std(fresh(task(head_std=0.1))["head"]["kernel"])) < 0.2


# The loss -----------------------------------------------------------------------------------------------------------


def loss_of(task):
    return jax.jit(task.loss, static_argnames="train")


def test_the_loss_is_cross_entropy_of_integer_and_of_soft_labels():
    t, b = task(head_std=0.5), batch()
    params = fresh(t)
    logits = np.asarray(jax.jit(t.forward)(params, b)["logits"], np.float64)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 6).astype(np.float32)
    loss, metrics = loss_of(t)(params, b, jax.random.key(1), train=True)
    assert float(loss) == pytest.approx(-logp[np.arange(6), b["label"]].mean(), abs=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(1) == b["label"]).mean())
    loss, _ = loss_of(t)(params, b | {"label": jnp.asarray(soft)}, jax.random.key(1), train=True)
    assert float(loss) == pytest.approx(-(soft * logp).sum(1).mean(), abs=1e-5)


def training_loss(task, params, batch, key):
    """The loss of a training batch, mixed as the trainer has it mixed."""
    return jax.jit(lambda p: task.loss(p, task.prepare(batch, key, train=True), key, train=True)[0])(params)


def test_label_smoothing_is_the_published_formula_and_acts_in_training_only():
    smooth, plain, b = task(head_std=0.5, mix=dict(mixup=0, cutmix=0, smoothing=0.1)), task(head_std=0.5), batch()
    params = fresh(plain)
    key = jax.random.key(1)
    logits = jax.jit(plain.forward)(params, b)["logits"]
    uniform = -float(jnp.mean(jax.nn.log_softmax(logits)))
    expected = 0.9 * float(loss_of(plain)(params, b, key, train=True)[0]) + 0.1 * uniform
    assert float(training_loss(smooth, params, b, key)) == pytest.approx(expected, abs=1e-5)
    assert float(loss_of(smooth)(params, b, key, train=False)[0]) == float(loss_of(plain)(params, b, key, train=False)[0])


def test_mixing_changes_the_training_loss_only():
    mixed, plain, b = task(head_std=0.5, mix=dict()), task(head_std=0.5), batch()
    params, key = fresh(plain), jax.random.key(1)
    assert float(training_loss(mixed, params, b, key)) != float(training_loss(plain, params, b, key))
    assert float(loss_of(mixed)(params, b, key, train=False)[0]) == float(loss_of(plain)(params, b, key, train=False)[0])


def test_drop_path_acts_in_training_only_and_by_position():
    """An example's noise follows its position in the global batch, not its place in a microbatch."""
    t, b = task(head_std=0.5, model=dict(drop_path=0.5)), batch()
    params, key = fresh(t), jax.random.key(1)
    assert float(loss_of(t)(params, b, key, train=True)[0]) != float(loss_of(t)(params, b, key, train=False)[0])
    half = lambda rows: float(loss_of(t)(params, {n: v[rows] for n, v in b.items()}, key, train=True)[0])
    whole = float(loss_of(t)(params, b, key, train=True)[0])
    assert (half(slice(0, 3)) + half(slice(3, 6))) / 2 == pytest.approx(whole, abs=1e-5)


def test_drop_path_grows_linearly_with_depth_and_drops_each_branch_by_itself():
    """Rates linspace(0, 0.6, 3), as timm: a block leaves an example as it was where both of its branches are dropped."""
    count = 3000
    t, b = task(model=dict(drop_path=0.6)), batch(count=count)
    keys = example_keys(jax.random.key(5), jnp.arange(count))
    inner = jax.jit(lambda p: t.encoder.apply({"params": p["encoder"]}, b["image"], keys=keys)[1])(fresh(t))
    blocks = [np.asarray(inner[f"block{i:02d}"]) for i in range(3)]
    for before, after, rate in zip(blocks, blocks[1:], (0.3, 0.6), strict=False):
        same = np.mean(np.all(before == after, axis=(1, 2)))
        assert same == pytest.approx(rate**2, abs=4.5 * (rate**2 * (1 - rate**2) / count) ** 0.5), rate


def test_batch_norm_before_the_head_is_affine_free():
    t, b = task(head_norm="batch", head_std=0.9), batch()
    params = fresh(t)
    x = np.asarray(jax.jit(t.features)(params, b)["pooled"], np.float64)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    expected = x @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(jax.jit(t.forward)(params, b)["logits"], expected, atol=1e-3)


# What is trained ----------------------------------------------------------------------------------------------------


def trained(blocks, pooling="mean"):
    t = task(pooling=pooling)
    params = jax.eval_shape(lambda: t.init(jax.random.key(0), batch()))
    settings = configs.read(optimizer.OptimizerSettings, freeze(dict(name="adamw", lr=1e-3), partial(3, blocks)), "optimizer")
    return {path for path, frozen in rules.flatten(optimizer.multipliers(settings, params).frozen).items() if not frozen}


def test_partial_fine_tuning_trains_the_last_blocks_the_norm_and_the_head():
    head = {"head/kernel", "head/bias", "encoder/pooled_norm/scale", "encoder/pooled_norm/bias"}
    assert trained(0) == {"head/kernel", "head/bias"}
    parts = lambda names: {name.split("/")[2] for name in names if name.startswith("encoder/stack")}
    assert parts(trained(1)) == {"block02"} and parts(trained(2)) == {"block01", "block02"}
    assert head < trained(0.5) and head < trained(2)
    assert {name.replace("pooled_norm", "final_norm") for name in head} < trained(1, "cls")
    half = {name for name in trained(0.5) if name.startswith("encoder/stack")}
    assert half == {f"encoder/stack/block02/{n}" for n in (
        "mlp_norm/scale", "mlp_norm/bias", "mlp/up/kernel", "mlp/up/bias", "mlp/down/kernel", "mlp/down/bias"
    )}  # fmt: skip
    assert trained(3) == set(rules.flatten(jax.eval_shape(lambda: task().init(jax.random.key(0), batch()))))


# lr_scale of param_groups_lrd(vit_base_patch16, layer_decay=0.65): cls_token, pos_embed and patch_embed; blocks.0 to
# blocks.11; fc_norm and head. 0.65 ** 13, 0.65 ** 12 ... 0.65 ** 1, 1.
REFERENCE = (
    0.0036972, 0.0056880, 0.0087508, 0.0134627, 0.0207119, 0.0318645, 0.0490223,
    0.0754189, 0.1160291, 0.1785063, 0.2746250, 0.4225000, 0.6500000, 1.0000000,
)  # fmt: skip


@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_layer_decay_of_a_vit_b_is_the_references(positions):
    """Every parameter of the model by name: the embeddings, then sixteen of each block, then norm and head."""
    section = ConfigDict(dict(task=dict(), model=dict(size="B", positions=positions), training={}))
    t = Classification.from_config(section, info(224))
    params = jax.eval_shape(lambda: t.init(jax.random.key(0), {"image": jnp.zeros((1, 224, 224, 1))}))
    settings = optimizer.OptimizerSettings(lr=1.0, layer_decay=0.65)
    found = rules.flatten(optimizer.multipliers(settings, params).lr)
    names = {0: ["class_token", "patch_embedding/kernel", "patch_embedding/bias"]}
    names[0] += ["positions"] if positions == "learned" else []
    attention = [f"attention/{part}/{leaf}" for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias")]
    mlp = [f"mlp/{part}/{leaf}" for part in ("up", "down") for leaf in ("kernel", "bias")]
    norms = [f"{norm}/{leaf}" for norm in ("attention_norm", "mlp_norm") for leaf in ("scale", "bias")]
    for block in range(12):
        names[block + 1] = [f"stack/block{block:02d}/{name}" for name in (*attention, *mlp, *norms)]
    names[13] = ["pooled_norm/scale", "pooled_norm/bias"]
    expected = {f"encoder/{name}": REFERENCE[layer] for layer, group in names.items() for name in group}
    expected |= {"head/kernel": 1.0, "head/bias": 1.0}
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path] == pytest.approx(value, abs=5e-8), path


# A user's mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(pooling="max"), "task.pooling='max': must be one of mean, cls"),
        (lambda: task(pooling="cls", model=dict(class_token=False)), "needs model.class_token=True"),
        (lambda: Classification.from_config(config(), info(classes=())), "has no labels"),
        (lambda: task(size=9), "model.patch_size=4 does not divide the image, 9 x 9"),
        (lambda: task(mix=dict(mixup=-1)), "task.mix.mixup=-1"),
        (lambda: task(poolin="cls"), "unknown key task.poolin; did you mean task.pooling"),
        (lambda: partial(4, 5), "blocks=5: must be 0, 0.5 or"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_settings_read_the_mixture():
    assert configs.read(ClassificationSettings, dict(mix=dict(mixup=0.2)), "task").mix == Mix(mixup=0.2)


def test_panels_say_the_class():
    t, b = task(), batch()
    lines = t.panels(fresh(t), b, jax.random.key(0))["predictions"].lines
    assert len(lines) == 6 and "it is" in lines[0]


def test_flops_are_three_forward_passes():
    t = task()
    assert t.flops() == 3 * (t.encoder.flops_forward() + 2 * 16 * 3)
