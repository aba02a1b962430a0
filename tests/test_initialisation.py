"""Starting from trained weights: what is taken, resized, left and refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.data.text.tokenizers import ByteTokenizer, CharacterTokenizer
from ssl_jax.errors import UserError
from ssl_jax.initialisation import Trained, for_context, load, match, named
from ssl_jax.models.patches import bilinear, patchify, resize_kernel
from ssl_jax.runs import data_section, task_class
from ssl_jax.task import DataInfo
from ssl_jax.workdir import Workdir
from tests.keys import toy_key

VIT = dict(name="vit", patch_size=4, width=16, depth=3, heads=2)
LANGUAGE = dict(width=16, depth=2, heads=2, mlp_width=32)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]")
MAE = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))


def images(size=8, channels=1, classes=("a", "b", "c")):
    image = jax.ShapeDtypeStruct((size, size, channels), jnp.float32)
    return DataInfo({"image": image, "label": jax.ShapeDtypeStruct((), jnp.int32)}, classes, (0.5,), (0.5,))


def texts(length=12, names=("tokens",), tokenizer=None, **shapes):
    shapes = {name: jax.ShapeDtypeStruct((shapes.get(name, length),), jnp.int32) for name in names}
    return DataInfo(shapes, ("no", "yes"), tokenizer=tokenizer or ByteTokenizer(SPECIAL))


def build(task, model, info):
    section = task if isinstance(task, dict) else dict(name=task)
    config = ConfigDict(dict(task=section, model=model, training={}, data=dict(batch_size=4)))
    return task_class(config).from_config(config, info)


def trained(task, model, info, name="runs/x", seed=7):
    task = build(task, model, info)
    return Trained(task, params_of(task, seed), task.info, name)


def params_of(task, seed=0):
    batch = {name: jnp.zeros((1, *s.shape), s.dtype) for name, s in task.info.shapes.items()}
    return jax.jit(task.init)(toy_key(seed), batch)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, dict(a)), jax.tree.map(np.asarray, dict(b)))


# The config -----------------------------------------------------------------------------------------------------------


def test_a_source_is_a_path_a_step_of_it_or_one_for_each_part():
    assert named({}) == named({"init": None}) == {}
    assert named({"init": "hf:x"}) == {"": "hf:x"} and named({"init": dict(image="a", text=None)}) == {"image": "a"}
    asked, source = [], trained(MAE, VIT, images())
    given = source.task, source.params, source.info
    load({"": "runs/a@30", "text": "hf:b@2"}, lambda *args: asked.append(args) or given)
    assert asked == [("runs/a", 30), ("hf:b@2", None)]
    with pytest.raises(UserError, match="task.init=3: expected a work directory"):
        named({"init": 3})


# Image encoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param("joint_embedding", marks=pytest.mark.slow), pytest.param("ijepa", marks=pytest.mark.slow), "masked_image"],
)
def test_a_pretext_task_starts_from_a_classifier_and_back(name):
    """The encoder's function survives: block outputs are those of the source."""
    view = dict(pair=jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    info = dataclasses.replace(images(), shapes={**images().shapes, **view})
    source = trained("classification", VIT, images())
    task = build(MAE if name == "masked_image" else name, VIT, info)
    batch = {"image": jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), "label": jnp.zeros(2, jnp.int32)}
    fresh = params_of(task)
    start = match(task, {"": source})
    found, expected = task.features(start(fresh), batch), source.task.features(source.params, batch)
    np.testing.assert_allclose(found["block02/mean"], expected["block02/mean"], atol=1e-6)
    assert "head" in start.unused and "encoder/final_norm" in start.fresh
    back = match(source.task, {"": Trained(task, start(fresh), info, "runs/y")})
    same(back(source.params)["encoder"]["stack"], source.params["encoder"]["stack"])
    assert "head" in back.fresh


def test_going_on_takes_everything():
    """The same task from its own parameters: the decoder, too."""
    source = trained(MAE, VIT, images())
    task = build(MAE, VIT, images())
    start = match(task, {"": source})
    same(start(params_of(task)), source.params)
    assert not (start.fresh or start.resized or start.unused)
    assert start.report()["parameters"] == sum(x.size for x in jax.tree.leaves(source.params))


def test_a_head_is_taken_only_for_the_same_classes():
    source = trained("classification", VIT, images())
    for classes, taken in ((("a", "b", "c"), True), (("c", "b", "a"), False)):
        task = build("classification", VIT, images(classes=classes))
        start = match(task, {"": source})
        assert ("head/kernel" in start.values) is taken and ("head" in start.fresh) is not taken
    assert "head/kernel" not in match(source.task, {"": source}, heads=False).values


@pytest.mark.parametrize("class_token", [True, False])
def test_learned_positions_are_interpolated_to_another_image_size(class_token):
    model = VIT | dict(positions="learned", class_token=class_token)
    source = trained(MAE, model, images(8))
    start = match(build("classification", model, images(16)), {"": source})
    table, old = start.values["encoder/positions"], np.asarray(source.params["encoder"]["positions"])
    # from 2 to 4 places with torch's kernel (a = -0.75), worked out by hand; the edge is repeated
    line = np.array([[1.10546875, -0.10546875], [0.7734375, 0.2265625], [0.2265625, 0.7734375], [-0.10546875, 1.10546875]])
    expected = np.einsum("ah,bw,hwd->abd", line, line, old[class_token:].reshape(2, 2, 16))
    np.testing.assert_allclose(table[class_token:], expected.reshape(16, 16), atol=1e-6)
    np.testing.assert_array_equal(table[:class_token], old[:class_token])
    assert start.resized == [f"encoder/positions [{4 + class_token}, 16] -> [{16 + class_token}, 16]"]


def test_an_enlarged_patch_keeps_its_embedding():
    """<B x, w'> = <x, w> for every patch x that the bilinear matrix B enlarges (Beyer et al. 2023, equation 4)."""
    old, new, random = (4, 4), (8, 6), np.random.default_rng(0)
    kernel, image = random.standard_normal((4 * 4 * 3, 5)), random.standard_normal((4, 4, 3))
    larger = np.einsum("ah,bw,hwc->abc", bilinear(4, 8), bilinear(4, 6), image)
    np.testing.assert_allclose(larger.reshape(-1) @ resize_kernel(kernel, old, new), image.reshape(-1) @ kernel, atol=1e-5)
    np.testing.assert_allclose(bilinear(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # torch, align_corners=False


def test_another_patch_and_image_size_at_once():
    """Twice the image, in patches of twice the size: the same tokens, for an image that is the enlarged one."""
    model = VIT | dict(positions="learned")
    source = trained(MAE, model, images(8))
    task = build(MAE, model | dict(patch_size=8), images(16))
    start = match(task, {"": source})
    small = np.random.default_rng(1).standard_normal((1, 8, 8, 1)).astype(np.float32)
    patches = np.asarray(patchify(small, (4, 4))).reshape(1, 2, 2, 4, 4)
    large = np.einsum("ah,bw,nijhw->niajb", bilinear(4, 8), bilinear(4, 8), patches).reshape(1, 16, 16, 1)
    found = task.features(start(params_of(task)), {"image": jnp.asarray(large, jnp.float32)})["tokens"]
    expected = source.task.features(source.params, {"image": small})["tokens"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert "decoder/output" in start.fresh or any("decoder" in name for name in start.fresh)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dict(width=32), r"add --config.model.width=32$"),
        (dict(depth=2), r"add --config.model.depth=2$"),
        (dict(heads=4), r"add --config.model.heads=4$"),  # the same shapes, another function
        (dict(activation="gelu_tanh"), r"add --config.model.activation=gelu_tanh$"),
        (dict(class_token=False), r"add --config.model.class_token=False$"),
    ],
)
def test_another_architecture_is_refused_with_the_flags_that_take_it(model, message):
    source = trained(MAE, VIT | model, images())
    with pytest.raises(UserError, match=rf"^task.init: runs/x has another architecture; to use it, {message}"):
        match(build(MAE, VIT, images()), {"": source})


def test_other_channels_and_other_kinds_are_refused():
    with pytest.raises(UserError, match="of 3 channels, but the data have 1; add --config.data.channels=3"):
        match(build(MAE, VIT, images()), {"": trained(MAE, VIT, images(channels=3))})
    with pytest.raises(UserError, match="holds transformer, but no image encoder"):
        match(build(MAE, VIT, images()), {"": trained("next_token", LANGUAGE, texts())})
    with pytest.raises(UserError, match="holds decoder, encoder, but no text transformer"):
        match(build("next_token", LANGUAGE, texts()), {"": trained(MAE, VIT, images())})


def test_another_normalisation_is_noted():
    source = trained(MAE, VIT, dataclasses.replace(images(), mean=(0.1,)))
    assert "data.normalize has (0.5,)" in match(build(MAE, VIT, images()), {"": source}).line()


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "task", "options"),
    [
        ("masked_token", "text_classification", dict(pooling="mean")),
        ("next_token", "text_classification", dict(pooling="last", causal=True)),
        ("masked_token", "question_answering", {}),
        ("masked_token", "masked_token", {}),
        ("next_token", "next_token", {}),
    ],
)
def test_a_task_over_text_starts_from_a_pretext_task(source, task, options):
    """The hidden states are the pretext task's own."""
    old = trained(source, LANGUAGE, texts(16))
    names = ("tokens", "segments") if task in ("text_classification", "question_answering") else ("tokens",)
    task = build(dict(name=task, **options), LANGUAGE | dict(context_length=12), texts(12 - 2, names=names))
    start = match(task, {"": old})
    batch = {"tokens": jnp.arange(20, dtype=jnp.int32).reshape(2, 10) + 97}
    found = task.features(start(params_of(task)), batch)
    np.testing.assert_allclose(found["mean"], old.task.features(old.params, batch)["mean"], atol=1e-5)
    assert [line.split(" -> ")[1] for line in start.resized] == ["[12, 16]"]


def test_positions_for_another_context_are_cut_or_repeated():
    table = np.arange(5.0)[:, None]
    np.testing.assert_array_equal(for_context(table, 3)[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(for_context(table, 12)[:, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    np.testing.assert_array_equal(for_context(table, 9, offset=2)[:, 0], [0, 1, 2, 3, 4, 2, 3, 4, 2])


def test_another_vocabulary_is_refused_and_one_with_more_tokens_taken():
    old = trained("next_token", LANGUAGE, texts(tokenizer=CharacterTokenizer("abcdefghi")))
    more = build("next_token", LANGUAGE, texts(tokenizer=CharacterTokenizer("abcdefghij")))
    fresh = params_of(more)
    table = match(more, {"": old})(fresh)["transformer"]["token_embedding"]
    known = old.info.tokenizer.size
    np.testing.assert_array_equal(table[:known], old.params["transformer"]["token_embedding"])
    np.testing.assert_array_equal(table[known:], fresh["transformer"]["token_embedding"][known:])
    with pytest.raises(UserError, match="'a' is 0 there and 1 here; add --config.data.tokenizer.name=file"):
        match(build("next_token", LANGUAGE, texts(tokenizer=CharacterTokenizer("bacdefghi"))), {"": old})


def test_text_of_another_architecture_is_refused():
    for model, flag in ((dict(depth=1), "depth=1"), (dict(heads=4), "heads=4"), (dict(norm="rms"), "norm=rms")):
        with pytest.raises(UserError, match=f"add --config.model.{flag}$"):
            match(build("next_token", LANGUAGE, texts()), {"": trained("next_token", LANGUAGE | model, texts())})
    start = match(build("next_token", LANGUAGE, texts()), {"": trained("masked_token", LANGUAGE, texts())})
    assert "transformer is causal here, not there" in start.line()


def test_a_run_reads_the_tokenizer_of_the_model_it_starts_from(tmp_path):
    """In place of one that would be trained; one that the config names stays."""
    CharacterTokenizer("abcdefghi").save(tmp_path / "old" / "tokenizer")
    ByteTokenizer().save(tmp_path / "hf")
    for init, folder in ((str(tmp_path / "old"), "old/tokenizer"), (f"hf:{tmp_path / 'hf'}", "hf"), ("nowhere", None)):
        for name, replaced in (("characters", True), ("bytes", False)):
            config = ConfigDict(dict(task=dict(init=init), data=dict(tokenizer=dict(name=name))))
            found = data_section(config, "tokens", None).tokenizer.to_dict()
            taken = replaced and folder is not None
            assert found == (dict(name="file", path=str(tmp_path / folder)) if taken else dict(name=name))


def test_the_tokenizer_of_a_refused_start_does_not_stay(tmp_path):
    wd, shapes = Workdir(tmp_path), {"tokens": jax.ShapeDtypeStruct((4,), jnp.int32)}
    CharacterTokenizer("abcdefghi").save(tmp_path / "tokenizer")
    for tokenizer in (CharacterTokenizer("ihgfedcba"), CharacterTokenizer("ihgfedcba"), ByteTokenizer()):
        wd.start(ConfigDict(), DataInfo(shapes, tokenizer=tokenizer))
        assert wd.info().tokenizer.key == tokenizer.key


# Several parts --------------------------------------------------------------------------------------------------------


def test_towers_start_from_one_run_or_from_one_each():
    info = DataInfo({**images(channels=3).shapes, **texts().shapes}, mean=(0.5,) * 3, std=(0.5,) * 3,
                    tokenizer=ByteTokenizer(SPECIAL))  # fmt: skip
    model = dict(image={k: v for k, v in VIT.items() if k != "name"} | dict(pooling="cls"),
                 text=LANGUAGE | dict(pooling="mean"), dim=8)  # fmt: skip
    task = build("image_text", model, info)
    fresh, mae, gpt = params_of(task), trained(MAE, VIT, images(channels=3)), trained("next_token", LANGUAGE, texts(), "runs/g")
    params = match(task, {"": mae})(fresh)
    same(params["image"]["stack"], mae.params["encoder"]["stack"])
    same(params["text"], fresh["text"])
    params = match(task, {"image": mae, "text": gpt})(fresh)
    same(params["image"]["stack"], mae.params["encoder"]["stack"])
    same(params["text"]["stack"], gpt.params["transformer"]["stack"])
    clip = Trained(task, params, info, "runs/clip")
    again = match(task, {"": clip})
    same(again(fresh), params)
    with pytest.raises(UserError, match="task.init.audio: this model has no such part; its parts are image, text"):
        match(task, {"audio": mae})
    with pytest.raises(UserError, match="task.init.text: runs/x holds decoder, encoder, but no text transformer"):
        match(task, {"text": mae})
    with pytest.raises(UserError, match="--config.model.text.heads=4"):
        match(task, {"text": trained("next_token", LANGUAGE | dict(heads=4), texts())})


def test_a_translation_model_starts_from_runs_over_tokens():
    """Cross-attention is new; a string starts the encoder, a section either side."""
    info = texts(names=("source", "target", "source_segments", "target_segments"), source=6, target=7)
    model = dict(name="encoder_decoder", encoder=LANGUAGE, shared_embedding=False)
    task = build("translation", model, info)
    fresh = params_of(task)
    bert, gpt = trained("masked_token", LANGUAGE, texts()), trained("next_token", LANGUAGE, texts(), seed=3)
    params = match(task, {"": bert})(fresh)
    same(params["encoder"]["stack"], bert.params["transformer"]["stack"])
    same(params["decoder"], fresh["decoder"])
    params = match(task, {"encoder": bert, "decoder": gpt})(fresh)
    block, old = params["decoder"]["stack"]["block01"], gpt.params["transformer"]["stack"]["block01"]
    same(block["mlp"], old["mlp"])
    same(block["cross"], fresh["decoder"]["stack"]["block01"]["cross"])
    assert params["encoder"]["position_embedding"].shape == (6, 16)
    prefix = build("translation", dict(name="transformer", **LANGUAGE), info)
    start = match(prefix, {"": gpt})
    same(start(params_of(prefix))["transformer"]["stack"], gpt.params["transformer"]["stack"])
