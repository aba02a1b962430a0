"""Indices in the data are checked against the tables they are looked up in, before a step reads NaN for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.data.text import corpus
from ssl_jax.data.text.supervised import parallel_text
from ssl_jax.downstream.supervised.text_classification import TextClassification
from ssl_jax.downstream.supervised.translation import Translation
from ssl_jax.errors import UserError
from ssl_jax.pretext.masked_token import MaskedToken
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.training.index_ranges import check_dataset, index_limits, out_of_range
from tests.downstream import text_toys as toys


@pytest.fixture
def labelled(tmp_path):
    """A task and its data set, before and after some arrays are changed."""
    train, _ = toys.data(tmp_path)
    task = TextClassification.from_config(toys.config(dict(name="text_classification"), token_types=2), train.info)
    return task, lambda **arrays: dataclasses.replace(
        train, arrays=train.arrays | arrays, label_array=arrays.get("label", train.labels())
    )


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


def test_good_data_pass(labelled):
    task, data = labelled
    check_dataset(task, data())
    batch = toys.batch_of(data())
    assert out_of_range(task, batch) is None
    assert index_limits(task) == {"tokens": 262, "token_types": 2, "label": 3}


@pytest.mark.parametrize("value", [-1, 262, 70_000])
def test_a_token_that_the_model_has_not_is_named(labelled, value):
    task, data = labelled
    bad = data(tokens=changed(data().arrays["tokens"], (5, 3), value))
    with pytest.raises(UserError, match=rf"line 7: tokens {value:,} is not among the model's vocabulary, 0 to 261; use the"):
        check_dataset(task, bad)


@pytest.mark.parametrize("value", [-1, 3])
def test_a_label_that_is_no_class_is_named(labelled, value):
    task, data = labelled
    with pytest.raises(UserError, match=rf"line 4: label {value} is not among the classes, 0 to 2"):
        check_dataset(task, data(label=changed(data().labels(), 2, value)))


@pytest.mark.slow
def test_a_type_beyond_the_table_is_named_and_one_of_one_row_is_not_looked_up(labelled, tmp_path):
    task, data = labelled
    types = np.zeros((data().size, 12), np.uint8)
    bad = data(token_types=changed(types, (9, 1), 2))
    with pytest.raises(UserError, match="token_types 2 is not among the table of token types, 0 to 1; raise model.token_types"):
        check_dataset(task, bad)
    single = TextClassification.from_config(toys.config(dict(name="text_classification"), token_types=1), data().info)
    check_dataset(single, bad)
    batch = toys.batch_of(bad)
    params = single.init(jax.random.key(0), batch)
    loss = single.loss(params, batch, jax.random.key(0), train=False)[0]
    assert np.isfinite(loss)  # RoBERTa's table has one row


def test_the_largest_token_of_a_corpus_is_looked_at(tmp_path):
    """Recorded when it was tokenised, so that no pass over it is needed."""
    (tmp_path / "a.txt").write_text("abcdef " * 40)
    section = dict(
        train=f"text:{tmp_path}/a.txt", block=8, batch_size=2, cache=str(tmp_path / "cache"), tokenizer=dict(name="bytes")
    )
    for build, cls, special in ((corpus.build, NextToken, ()), (corpus.build_sequences, MaskedToken, toys.SPECIAL)):
        data = build(section | dict(tokenizer=dict(name="bytes", special_tokens=special)))
        config = ConfigDict(dict(task=dict(name=cls.name), model=dict(width=8, depth=1, heads=1), training={}))
        task = cls.from_config(config, data.info)
        check_dataset(task, data)
        small = dataclasses.replace(task, model=dataclasses.replace(task.model, vocabulary=100))
        with pytest.raises(
            UserError, match=r"a.txt \(without its last 10 %\): tokens 102 is not among the model's vocabulary, 0 to 99"
        ):
            check_dataset(small, data)


def test_both_sides_of_parallel_text_are_checked(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("ab\ncd\n")
    uri = f"parallel:{tmp_path}/a,{tmp_path}/b"
    data = parallel_text(
        dict(train=uri, test=uri, tokenizer=toys.BYTES, max_source_length=6, max_target_length=6), split="train", train=True
    )
    model = dict(name="encoder_decoder", encoder=dict(width=8, depth=1, heads=1))
    task = Translation.from_config(ConfigDict(dict(task=dict(name="translation"), model=model, training={})), data.info)
    check_dataset(task, data)
    for side in ("source", "target"):
        bad = dataclasses.replace(data, arrays=data.arrays | {side: changed(data.arrays[side], (1, 0), 900)})
        with pytest.raises(UserError, match=rf"line 2: {side} 900 is not among"):
            check_dataset(task, bad)


def test_a_batch_tells_where_its_index_is_out_of_range(labelled):
    """For the line of a loss that is not finite; an index beside stands for the example."""
    task, data = labelled
    batch = toys.batch_of(data())
    bad = batch | {"tokens": batch["tokens"].at[3, 1].set(300), "index": jnp.arange(8) + 40}
    assert out_of_range(task, bad) == (
        "row 3 of the batch (example 43): tokens 300 is not among the model's vocabulary, 0 to 261; use the tokenizer that the "
        "model was made for (data.tokenizer)"
    )
    soft = batch | {"label": jnp.full((8, 3), 1 / 3)}  # of mixed examples
    assert out_of_range(task, soft) is None
