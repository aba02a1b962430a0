"""The tables hold every parameter of our models, and reading undoes writing."""

import jax
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.interop import mapping
from ssl_jax.interop.convert import exported, load_pretrained
from ssl_jax.training.rules import flatten
from tests.interop.interop_toys import OURS, params_of, task_of, write


@pytest.mark.parametrize("architecture", OURS)
def test_what_is_written_is_read_back_exactly(architecture, tmp_path):
    task = task_of(architecture)
    params = params_of(task)
    name, theirs, tensors = exported(task, params)
    assert name == architecture
    again, loaded, _ = load_pretrained(write(tmp_path / "hf", theirs, tensors, task.info))
    assert type(again) is type(task)
    before, after = flatten(params), flatten(loaded)
    if architecture == "GPT2LMHeadModel":  # its biases exist there, as zeros
        assert not any(after.pop(path).any() for path in set(after) - set(before))
    else:
        model = lambda t: t.model.config if hasattr(t, "model") else t.encoder.config
        assert exported(again, loaded)[1] == theirs and type(model(again)) is type(model(task))
    if architecture == "BertForMaskedLM":  # untied, it has a second bias that nothing reads
        np.testing.assert_array_equal(after.pop("head/unread_bias"), after["head/bias"])
    assert set(before) == set(after)
    if architecture == "Data2VecVisionModel":  # a bias of the keys has no effect, and no place there
        keys = [path for path in before if path.endswith("key/bias")]
        assert keys and not any(after.pop(path).any() for path in keys) and [before.pop(path) for path in keys]
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_each_row_undoes_itself():
    """Reading what was written, for arrays of numbers that are all different."""
    for transform, shapes in (
        (mapping.TRANSPOSED, [(3, 5)]), (mapping.leading(2), [(4,)]), (mapping.leading(-1), [(1, 4)]),
        (mapping.convolution((2, 3)), [(18, 4)]), (mapping.fused(3), [(4, 5)] * 3), (mapping.fused(2), [(5,)] * 2),
        (mapping.fused(3, transposed=False), [(4, 5)] * 3),
    ):  # fmt: skip
        numbered = [np.arange(np.prod(s), dtype=np.float32).reshape(s) + 1000 * i for i, s in enumerate(shapes)]
        back = transform.ours(*transform.theirs(*numbered))
        assert all(np.array_equal(a, b) for a, b in zip(numbered, back, strict=True))


def test_a_patch_embedding_is_their_convolution():
    kernel = np.random.default_rng(0).standard_normal((2 * 3 * 5, 7)).astype(np.float32)  # rows, columns, channels
    (weight,) = mapping.convolution((2, 3)).theirs(kernel)
    patch = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(patch.reshape(-1) @ kernel, np.einsum("ocpq,pqc->o", weight, patch), rtol=1e-5)


@pytest.mark.parametrize(
    "architecture, changes, named",
    [
        ("ViTModel", dict(registers=2), "model.registers=2"),
        ("ViTModel", dict(norm="rms"), "model.norm='rms'"),
        ("ViTModel", dict(pooling="mean"), "model.pooling='mean'"),
        ("Data2VecVisionModel", dict(pooling="mean"), "pooling='mean'"),
        ("Data2VecVisionModel", dict(patch_size=2), "model.patch_size=2: a grid of 3 x 4 patches"),
        ("ViTMAEForPreTraining", dict(class_token=False), "model.class_token=False"),
        ("ViTMAEForPreTraining", dict(norm_eps=1e-3), "norm_eps"),
        ("GPT2LMHeadModel", dict(norm_position="post"), "model.norm_position='post'"),
        ("LlamaForCausalLM", dict(qk_norm=True), "model.qk_norm=True"),
        ("BertForMaskedLM", dict(output_bias=False), "model.output_bias=False"),
        ("ModernBertForMaskedLM", dict(window=None), "model.window=None"),
    ],
)
def test_a_setting_that_the_other_side_lacks_is_named(architecture, changes, named):
    task = task_of(architecture, **changes)
    with pytest.raises(UserError) as error:
        exported(task, params_of(task))
    assert named in str(error.value) and architecture in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "architecture, key, value",
    [
        ("GPT2LMHeadModel", "scale_attn_by_inverse_layer_idx", True),
        ("GPT2LMHeadModel", "activation_function", "mish"),
        ("LlamaForCausalLM", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("BertForMaskedLM", "position_embedding_type", "relative_key"),
        ("ModernBertForMaskedLM", "mlp_bias", True),
        ("ModernBertForMaskedLM", "layer_types", ["full_attention"]),
        ("ViTModel", "pooler_act", "relu"),
        ("Data2VecVisionModel", "use_shared_relative_position_bias", False),
        ("Data2VecVisionModel", "use_relative_position_bias", True),
    ],
)
def test_a_setting_of_theirs_that_we_lack_is_named(architecture, key, value, tmp_path):
    task = task_of(architecture)
    _, theirs, tensors = exported(task, params_of(task))
    write(tmp_path / "hf", theirs | {key: value}, tensors, task.info)
    with pytest.raises(UserError, match="rope_type" if key == "rope_parameters" else key):
        load_pretrained(tmp_path / "hf")


def test_names_are_accepted_with_and_without_the_prefix_and_as_older_files_spell_them(tmp_path):
    task = task_of("BertForMaskedLM", tied=True)
    params = params_of(task)
    _, theirs, tensors = exported(task, params)
    older = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in tensors.items()
    }
    older["embeddings.position_ids"] = np.arange(9)[None]
    older["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    loaded = load_pretrained(write(tmp_path / "older", theirs, older, task.info))[1]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True))
    older["cls.predictions.decoder.weight"] = older["cls.predictions.decoder.weight"] + 1
    with pytest.raises(UserError, match=r"decoder\.weight differs from .*word_embeddings"):
        load_pretrained(write(tmp_path / "untied", theirs, older, task.info))


def test_positions_that_are_the_fixed_ones_are_fixed_here_and_others_are_learned(tmp_path):
    task = task_of("ViTMAEForPreTraining")
    _, theirs, tensors = exported(task, params_of(task))
    fixed, params, _ = load_pretrained(write(tmp_path / "a", theirs, tensors))
    assert fixed.encoder.config.positions == "sincos2d" and "positions" not in params["encoder"]
    name = "vit.embeddings.position_embeddings"
    tensors[name] = tensors[name] + np.float32(1e-3)
    learned, params, _ = load_pretrained(write(tmp_path / "b", theirs, tensors))
    assert learned.encoder.config.positions == "learned"
    np.testing.assert_array_equal(params["encoder"]["positions"], tensors[name][0])
