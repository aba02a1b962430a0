"""`ssl_jax.load(path).forward(batch)`: names and kinds of what comes back, and what is said of a batch that does not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import api
from ssl_jax.api import Pretrained
from ssl_jax.errors import UserError
from ssl_jax.interop.convert import task_class
from ssl_jax.task import DataInfo
from tests import tokenizer_toys as toys
from tests.interop.interop_toys import OURS, params_of, task_of
from tests.keys import toy_key

IMAGES = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
TOKENS = np.array([[1, 5, 6, 7, 22], [1, 8, 9, 22, 0]])
OUTPUTS = {  # by the task: names and shapes, of a batch with only what is required
    "masked_image": {"loss": (), "pred": (2, 12, 12), "mask": (2, 12)},
    "image_encoder": {"tokens": (2, 13, 12), "pooled": (2, 12)},
    "classification": {"tokens": (2, 13, 12), "pooled": (2, 12), "logits": (2, 2)},
    "next_token": {"logits": (2, 5, 23)},
    "masked_token": {"logits": (2, 5, 23)},
    "image_text": {"image_embedding": (2, 5), "text_embedding": (2, 5), "logits_per_image": (2, 2)},
}


def model_of(architecture, **changes):
    task = task_of(architecture, **changes)
    return Pretrained(task, params_of(task), task.info)


def batch_for(task):
    arrays = {"image": ("pixel_values", IMAGES), "tokens": ("tokens", TOKENS)}
    return dict(arrays[name] for name in api.INPUTS[task.data])


@pytest.mark.parametrize("architecture", OURS)
def test_outputs_by_name_as_numpy(architecture):
    model = model_of(architecture)
    out = model.forward(batch_for(model.task))
    wanted = dict(OUTPUTS[model.task.name])
    if architecture == "SiglipModel":
        wanted |= {"image_embedding": (2, 12), "text_embedding": (2, 12)}
    if model.task.name == "image_encoder":  # the patches behind a class token and registers, if any
        wanted["tokens"] = (2, model.task.encoder.patches + model.task.encoder.config.prefix, 12)
    if architecture == "BertForPreTraining":
        wanted["next_sentence"] = (2, 2)
    found = {name: (type(value), value.dtype, value.shape) for name, value in out.items()}
    for name, shape in wanted.items():
        assert found[name] == (np.ndarray, np.float32, shape), name
    if model.task.data != "pairs":
        assert set(found) == set(wanted)
    for name in ("image_embedding", "text_embedding"):
        if name in out:
            np.testing.assert_allclose(np.linalg.norm(out[name], axis=1), 1, rtol=1e-5)
    features = model.features(batch_for(model.task)).values()
    assert all(type(value) is np.ndarray and value.dtype == np.float32 for value in features)


def test_noise_decides_what_is_hidden():
    """The patches of the least noise are seen; with the same noise the answer is the same."""
    model = model_of("ViTMAEForPreTraining")
    noise = np.random.default_rng(1).random((2, 12)).astype(np.float32)
    out = model.forward({"pixel_values": IMAGES, "noise": noise})
    assert [set(np.flatnonzero(row == 0)) for row in out["mask"]] == [set(np.argsort(row)[:3]) for row in noise]
    assert all(np.array_equal(value, model.forward({"pixel_values": IMAGES}, noise=noise)[name]) for name, value in out.items())


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel", "ModernBertForMaskedLM", "SiglipModel"])
def test_masked_padding_changes_nothing_else(architecture):
    model = model_of(architecture)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    batch = batch_for(model.task) | {"attention_mask": mask}
    other = batch | {"tokens": np.where(mask == 1, TOKENS, 9)}
    a, b = model.forward(batch), model.forward(other)
    if architecture == "SiglipModel":  # it reads the last place, padding or not
        assert np.abs(a["text_embedding"][0] - b["text_embedding"][0]).max() < 1e-6
    else:
        assert np.abs((a["logits"] - b["logits"]) * mask[..., None]).max() < 1e-5
    assert np.abs(a["logits"] - model.forward(batch_for(model.task))["logits"]).max() > 1e-3


@pytest.mark.parametrize("architecture", ["ViTModel", "ViTForImageClassification"])
def test_images_of_another_size(architecture, monkeypatch):
    """Learned positions are interpolated; at the trained size nothing changes."""
    task = task_of(architecture)
    params = params_of(task)
    params["encoder"]["positions"] = np.broadcast_to(np.float32(0.3), params["encoder"]["positions"].shape)
    monkeypatch.setattr(api, "_parts", lambda path, checkpoint: (task, params, task.info))
    plain, same, large = api.load("here"), api.load("here", image_size=(6, 8)), api.load("here", image_size=(8, 12))
    a, b = plain.forward({"pixel_values": IMAGES}), same.forward({"pixel_values": IMAGES})
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert large.forward({"pixel_values": np.zeros((1, 8, 12, 3), np.float32)})["tokens"].shape == (1, 25, 12)
    assert large.params["encoder"]["positions"].shape == (25, 12)
    np.testing.assert_allclose(large.params["encoder"]["positions"], 0.3, rtol=1e-6)
    for size, said in (((7, 8), "patch_size=2 does not divide"), ((-2, 8), "expected")):
        with pytest.raises(UserError, match=said):
            api.load("here", image_size=size)


def test_a_model_of_one_size_says_so(monkeypatch):
    model = model_of("ViTMAEForPreTraining")
    monkeypatch.setattr(api, "_parts", lambda path, checkpoint: (model.task, model.params, model.info))
    with pytest.raises(UserError, match="a masked_image model has a fixed size"):
        api.load("here", image_size=(8, 8))


def test_token_types_matter():
    model = model_of("BertForPreTraining")
    a, b = (model.forward({"tokens": TOKENS, "token_type_ids": np.full_like(TOKENS, kind)})["logits"] for kind in (0, 1))
    np.testing.assert_array_equal(a, model.forward({"tokens": TOKENS})["logits"])
    assert np.abs(a - b).max() > 1e-3


def test_images_are_compared_with_another_number_of_texts():
    model = model_of("CLIPModel")
    out = model.forward({"pixel_values": IMAGES, "tokens": np.concatenate([TOKENS, TOKENS[:1]])})
    assert out["logits_per_image"].shape == (2, 3)
    np.testing.assert_allclose(out["logits_per_image"][:, 2], out["logits_per_image"][:, 0], rtol=1e-5)
    assert model.features({"pixel_values": IMAGES})["image_embedding"].shape == (2, 5)
    assert model.features({"tokens": TOKENS})["text_embedding"].shape == (2, 5)


def test_room_for_more_tokens_than_the_tokenizer_has():
    """`vocabulary` counts in the embedding and in the logits; fewer than the tokenizer's are refused."""
    model = model_of("BertForMaskedLM", vocabulary=30)
    assert model.forward({"tokens": np.full((1, 4), 29)})["logits"].shape == (1, 4, 30)
    with pytest.raises(UserError, match="vocabulary=22: must be at least 23"):
        task_of("BertForMaskedLM", vocabulary=22)


@pytest.mark.parametrize("padded", [[0, 1], [5, 6], [3]])
def test_positions_behind_an_offset_skip_padding(padded):
    """RoBERTa: moving the padding about moves the text's outputs with it, and changes none."""
    model = model_of("RobertaForMaskedLM")
    text = np.array([5, 6, 7, 8, 9, 10, 11])[: 7 - len(padded)]
    places = [i for i in range(7) if i not in padded]
    tokens = np.ones((1, 7), np.int64)
    tokens[0, places] = text
    out = model.forward({"tokens": tokens, "attention_mask": tokens != 1})["logits"][0, places]
    np.testing.assert_allclose(out, model.forward({"tokens": text[None]})["logits"][0], rtol=1e-4, atol=1e-5)


def test_an_offset_without_that_padding_is_refused():
    with pytest.raises(UserError, match="model.position_offset=3: .* must be 2; the tokenizer's is 1"):
        task_of("RobertaForMaskedLM", position_offset=3)


@pytest.mark.parametrize(
    "architecture, batch, said",
    [
        ("ViTModel", {"image": IMAGES[:, :5]}, "image: expected [batch, 6, 8, 3], got [2, 5, 8, 3]"),
        ("ViTModel", {"images": IMAGES}, "takes image, but the batch holds images"),
        ("ViTMAEForPreTraining", {"pixel_values": IMAGES, "noise": np.zeros((2, 5))}, "[2, 12], got [2, 5]"),
        ("BertForMaskedLM", {"input_ids": TOKENS}, "takes tokens, but the batch holds input_ids"),
        ("BertForMaskedLM", {"tokens": TOKENS[0]}, "[batch, time]"),
        ("BertForMaskedLM", {"tokens": TOKENS + 0.5}, "whole numbers"),
        ("BertForMaskedLM", {"tokens": TOKENS + 20}, "tokens: 42 is not among the model's 23 ids"),
        ("BertForMaskedLM", {"tokens": TOKENS - 1}, "tokens: -1 is not among"),
        ("BertForMaskedLM", {"tokens": TOKENS, "token_type_ids": TOKENS}, "token_type_ids: 22 is not among the model's 2 ids"),
        ("BertForMaskedLM", {"tokens": TOKENS, "attention_mask": TOKENS[:, :3]}, "attention_mask: expected the shape"),
        ("BertForMaskedLM", {"tokens": np.ones((1, 10), int)}, "longer than the model's context of 9"),
        ("CLIPModel", {"pixel_values": IMAGES}, "takes image and tokens, but the batch holds image"),
    ],
)
def test_a_batch_that_does_not_fit_is_told(architecture, batch, said):
    with pytest.raises(UserError) as error:
        model_of(architecture).forward(batch)
    assert said in str(error.value) and "\n" not in str(error.value)


def stored():
    return np.random.default_rng(2).integers(0, 256, (2, 6, 8, 3))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16, np.uint16, np.float32, np.float64, np.float16])
def test_the_same_image_in_another_dtype_has_the_same_features(dtype):
    """Integers are 0 to 255, 16-bit ones 0 to 65,535, floats lie in [0, 1]."""
    model, pixels = model_of("ViTModel"), stored()
    given = {np.uint16: pixels * 257, **dict.fromkeys((np.float32, np.float64, np.float16), pixels / 255)}.get(dtype, pixels)
    wanted = model.features({"image": pixels.astype(np.uint8)})["mean"]
    np.testing.assert_allclose(
        model.features({"image": given.astype(dtype)})["mean"], wanted, atol=1e-3 if dtype == np.float16 else 1e-5
    )


def test_normalised_pixels_are_given_under_a_name_of_their_own():
    model, pixels = model_of("ViTModel"), stored().astype(np.uint8)
    mean, std = np.float32(model.info.mean), np.float32(model.info.std)
    normalised = (pixels / np.float32(255) - mean) / std
    wanted = model.features({"image": pixels})["mean"]
    np.testing.assert_allclose(model.features({"pixel_values": normalised})["mean"], wanted, atol=1e-5)
    np.testing.assert_array_equal(model.prepare({"pixel_values": normalised})["image"], normalised)


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"image": stored().astype(np.float32)}, "expected uint8 or floats in [0, 1]; give normalised images as pixel_values"),
        ({"image": np.full((2, 6, 8, 3), np.nan)}, "a value of example 0 is nan"),
        ({"image": np.where(np.arange(3) == 1, np.inf, 0.5) * np.ones((2, 6, 8, 3))}, "a value of example 0 is inf"),
        ({"image": stored().astype(np.uint16)}, "image is uint16, but its highest value is"),
        ({"image": stored() - 128}, "expected 0 to 255"),
        ({"image": stored() * 4}, "expected 0 to 255"),
        ({"image": np.full((2, 6, 8, 3), "x")}, "expected uint8 or floats in [0, 1]"),
        ({"pixel_values": np.full((2, 6, 8, 3), np.nan)}, "pixel_values: expected finite, normalised floats, got float64"),
        ({"pixel_values": stored()}, "pixel_values: expected finite, normalised floats, got int64; give pixels as image"),
        ({"pixel_values": IMAGES, "image": stored()}, "give either image (pixels) or pixel_values"),
        ({"image": stored()[0, 0]}, "image: expected [batch, 6, 8, 3]"),
    ],
)  # fmt: skip
def test_pixels_out_of_range_are_refused_rather_than_guessed(batch, message):
    with pytest.raises(UserError) as error:
        model_of("ViTModel").features(batch)
    assert message in str(error.value) and "\n" not in str(error.value)


# Text ----------------------------------------------------------------------------------------------------------------


def with_tokenizer(architecture, tokenizer):
    task = task_of(architecture, vocabulary=tokenizer.size)
    task = dataclasses.replace(task, info=dataclasses.replace(task.info, tokenizer=tokenizer))
    return Pretrained(task, params_of(task), task.info)


@pytest.mark.parametrize(("architecture", "kind"), [("BertForMaskedLM", "bert"), ("RobertaForMaskedLM", "roberta")])
def test_long_texts_lose_words_and_no_special_tokens(architecture, kind):
    tokenizer = toys.KINDS[kind]()
    model = with_tokenizer(architecture, tokenizer)
    short, long = model.prepare({"text": ["the cat", "the cat sat on the mat " * 9]})["tokens"]
    assert short[: len(tokenizer.encode("the cat", special=True))].tolist() == tokenizer.encode("the cat", special=True)
    assert len(long) == 9 and long[0] == tokenizer.cls_id and long[-1] == tokenizer.sep_id


@pytest.mark.parametrize(("architecture", "kind"), [("LlamaForCausalLM", "metaspace"), ("GPT2LMHeadModel", "gpt2")])
def test_causal_texts_begin_as_their_tokenizer_has_it(architecture, kind):
    """And one longer than the context is cut to it, not to a training window, which is one token longer."""
    tokenizer = toys.KINDS[kind]()
    model = with_tokenizer(architecture, tokenizer)
    tokens = model.prepare({"text": ["the cat"]})["tokens"][0]
    assert tokens.tolist() == [*tokenizer.prefix_ids, *tokenizer.encode("the cat")][:9]
    out = model.forward({"text": ["the cat", "the cat sat on the mat " * 9]})
    assert out["logits"].shape[:2] == (2, model.task.model.context)


def test_padding_is_not_read_by_a_text_classifier():
    """The features of a text are the same alone and beside a longer one."""
    tokenizer = toys.bert()
    shapes = {"tokens": jax.ShapeDtypeStruct((16,), np.int32)}
    info = DataInfo(shapes, classes=("a", "b"), tokenizer=tokenizer)
    model = dict(width=12, depth=2, heads=3, init="normal", init_std=0.5)
    for name, pooling in (("text_classification", "mean"), ("text_classification", "last"), ("question_answering", None)):
        task = dict(name=name) | ({} if pooling is None else dict(pooling=pooling))
        config = ConfigDict(dict(task=task, model=model, data={}, training={}))
        made = task_class(config).from_config(config, info)
        loaded = Pretrained(made, jax.jit(made.init)(toy_key(0), {"tokens": np.zeros((1, 16), np.int32)}), info)
        alone = loaded.features({"text": "the cat"})
        beside = loaded.features({"text": ["the cat", "the dog sat on the mat"]})
        for key in ("mean", "last", *(("pooled", "logits") if pooling else ())):
            np.testing.assert_allclose(alone[key][0], beside[key][0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="text: number 1 is None, expected a text"):
        loaded.features({"text": ["a", None]})
