"""Sentences whose class is one of their letters, and a transformer small enough for every test here."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.data.text.supervised import labelled_text

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]")
BYTES = dict(name="bytes", special_tokens=SPECIAL)
MODEL = dict(name="transformer", width=16, depth=2, heads=2, init="normal", init_std=0.2, dropout=0.1)


def letters(path, count=60, classes="xyz", seed=0):
    """tsv:FILE of sentences with one letter of `classes` somewhere in them, which is their label."""
    random = np.random.default_rng(seed)
    rows = ["text\tlabel"]
    for i in range(count):
        label = classes[i % len(classes)]
        word = list(random.choice(list("abcd "), random.integers(2, 9)))
        word.insert(random.integers(len(word) + 1), label)
        rows.append("".join(word) + "\t" + label)
    path.write_text("\n".join(rows) + "\n")
    return f"tsv:{path}"


def section(train, test=None, **changes):
    return dict(train=train, test=test or train, tokenizer=BYTES, max_length=12) | changes


def config(task, **model):
    return ConfigDict(dict(task=task, model=MODEL | model, training=dict(dtype="float32")))


def data(tmp_path, **changes):
    uri = letters(tmp_path / "letters.tsv")
    settings = section(uri, **changes)
    return labelled_text(settings, split="train", train=True), labelled_text(settings, split="test", train=False)


def batch_of(dataset, rows=8):
    batch = jax.tree.map(jnp.asarray, dataset.on_device(dataset.rows(np.arange(rows)), None))
    return batch | {"position": jnp.arange(rows, dtype=jnp.int32), "index": jnp.arange(rows, dtype=jnp.int32)}


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
