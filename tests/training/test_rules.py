"""First-match rules, the default weight-decay rule and the layer-decay table."""

import jax
import jax.numpy as jnp
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training import rules
from ssl_jax.training.optimizer import OptimizerSettings, multipliers

PARAMS = {
    "encoder": {
        "patch_embedding": {"kernel": jnp.zeros((12, 4)), "bias": jnp.zeros(4)},
        "class_token": jnp.zeros((1, 4)),
        "mask_token": jnp.zeros(4),
        "positions": jnp.zeros((9, 4)),
        "block00": {"attention": {"query": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}}},
        "block01": {"mlp_norm": {"scale": jnp.zeros(4)}, "layer_scale": jnp.zeros(4)},
        "norm": {"scale": jnp.zeros(4)},
    },
    "head": {"kernel": jnp.zeros((4, 2))},
    "logit_scale": jnp.zeros(()),
}


def test_the_first_matching_rule_counts_and_the_whole_path_must_match():
    tree = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 0}}
    found = rules.first_match(((r".*/bias", 1), (r"a/.*", 2), (r"b", 3), (r".*", 4)), tree, "rules")
    assert found == {"a": {"kernel": 2, "bias": 1}, "b": {"kernel": 4}}


def test_a_parameter_without_a_rule_and_a_broken_expression_are_user_errors():
    with pytest.raises(UserError, match="no rule matches the parameter b/kernel"):
        rules.first_match(((r"a/.*", 2),), {"b": {"kernel": 0}}, "optimizer.rules.lr")
    with pytest.raises(UserError, match="not a regular expression"):
        rules.first_match(((r"(", 2),), {"b": 0}, "optimizer.rules.lr")
    with pytest.raises(UserError, match="expected a pair"):
        rules.first_match((r"abc",), {"b": 0}, "optimizer.rules.lr")


def test_weight_decay_acts_on_these_parameters_by_default():
    """Everything of one axis, biases, norms and positions are left alone; class and mask tokens are decayed (FAIR's MAE)."""
    decayed = {
        path for path, value in rules.flatten(multipliers(OptimizerSettings(lr=1.0), PARAMS).weight_decay).items() if value
    }
    assert decayed == {
        "encoder/patch_embedding/kernel", "encoder/class_token", "encoder/mask_token",
        "encoder/block00/attention/query/kernel", "head/kernel",
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "encoder/", "task/encoder/"])
def test_the_layer_decay_table_of_vit_b(prefix):
    """12 blocks: num_layers 13; id 0 for the embedding, N + 1 for block N, 13 for the rest; 0.65 ** (13 - id)."""
    paths = [f"{prefix}{name}" for name in ("patch_embedding/kernel", "positions", "class_token", "norm/scale")]
    paths += [f"{prefix}block{n:02d}/mlp/up/kernel" for n in range(12)] + ["head/kernel", "fc_norm/bias"]
    got = rules.layer_decay_multipliers(paths, 12, 0.65)
    expected = {f"{prefix}{name}": 0.65**13 for name in ("patch_embedding/kernel", "positions", "class_token")}
    expected |= {f"{prefix}block{n:02d}/mlp/up/kernel": 0.65 ** (12 - n) for n in range(12)}
    expected |= {f"{prefix}norm/scale": 1.0, "head/kernel": 1.0, "fc_norm/bias": 1.0}
    assert dict(got) == expected
    assert rules.layer_decay_multipliers(paths, None, 0.65) == got, "the depth is the number of blocks"


def test_layer_decay_multiplies_the_rules_of_the_learning_rate():
    settings = OptimizerSettings(lr=1.0, layer_decay=0.5, rules={"lr": ((r"head/.*", 10.0), (r".*", 1.0))})
    lr = rules.flatten(multipliers(settings, PARAMS).lr)
    assert lr["head/kernel"] == 10.0 and lr["encoder/block01/layer_scale"] == 0.5
    assert lr["encoder/block00/attention/query/bias"] == 0.25 and lr["encoder/positions"] == 0.125


@pytest.mark.parametrize("section", ["weight_decay", "lr"])
@pytest.mark.parametrize("value", [-1, "x", True, float("nan")])
def test_a_multiplier_must_be_a_number(section, value):
    with pytest.raises(UserError, match=f"optimizer.rules.{section}"):
        multipliers(OptimizerSettings(lr=1.0, rules={section: ((".*", value),)}), PARAMS)


def test_paths_are_in_the_order_of_the_tree():
    assert list(rules.flatten(PARAMS)) == [rules.path_of(k) for k, _ in jax.tree_util.tree_flatten_with_path(PARAMS)[0]]
