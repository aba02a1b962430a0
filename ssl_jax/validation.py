"""The part of the training data on which checkpoint.best selects: held out of training, and never the test split."""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssl_jax import data
from ssl_jax.errors import UserError

CORPORA = ("tokens", "sequences")  # kinds whose examples overlap: their end is held out


def split_training(
    whole: Callable[[bool], Any], kind: str, section: Mapping[str, Any], share: float, **options: Any
) -> Callable[[str, bool], Any]:
    """Return (part, augmented) -> Dataset, where the part is "train" or "validation", `share` of the training examples.

    Independent examples are held out by a hash of their names or contents (splits.held_out), in every class; of a corpus, the
    last part is held out. whole: augmented -> the training data before the split; section, options: the arguments of
    `data.build`. Raise UserError for a corpus without a separate test text.
    """
    if kind in CORPORA:
        return _by_position(whole, kind, section, share, options)

    def part(name: str, augmented: bool) -> Any:
        from ssl_jax.data.pipeline import subset
        from ssl_jax.data.splits import held_out

        dataset = whole(augmented)
        held = held_out(dataset.source.keys(), share, dataset.labels(), seed=1)
        if not held.any():
            raise UserError(f"training.validation={share}: holds out none of the {dataset.size:,} training examples; raise it")
        return subset(dataset, np.flatnonzero(held == (name == "validation")))

    return part


def _by_position(whole, kind, section, share, options) -> Callable[[str, bool], Any]:
    if section.get("test") is None:
        raise UserError("checkpoint.best: needs data.test, because the end of data.train is used as test text without it")

    def part(name: str, augmented: bool) -> Any:
        tokenizer = whole(False).info.tokenizer
        with tempfile.TemporaryDirectory(prefix="ssl_jax_") as folder:
            tokenizer.save(folder)
            ours = {**section, "test": None, "holdout": share, "tokenizer": {"name": "file", "path": folder}}
            split = "test" if name == "validation" else "train"
            return data.build(kind, ours, split=split, train=augmented, **options)

    return part
