"""Texts without targets: the lines or records that a trained model reads."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssl_jax.data.labels import multi_hot
from ssl_jax.data.pipeline import Dataset
from ssl_jax.data.sources import MISSING
from ssl_jax.data.sources.files import lines_of, read_text
from ssl_jax.data.sources.text_columns import UNIT, Table, read_table
from ssl_jax.data.text.corpus_files import TextFiles
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo


def text_rows(uri: str, section: Mapping[str, Any], classes: Sequence[str] = ()) -> tuple[Table, np.ndarray | None]:
    """Return every line (of text:GLOB, including blank ones) or record of a source, under "text" and perhaps "pair", and the
    labels i32[rows].

    `section` is the `data` section of the model's run, for the names of its columns. Labels are numbers of `classes` (MISSING:
    none of them), or with the section's `label_separator` i32[rows, classes] of 0 and 1; None if the source has no such column.
    """
    if uri.startswith("text:"):
        return _lines(uri), None
    columns = dict(section.get("columns") or {})
    wanted = {"text": columns.get("text", section.get("column", "text"))}
    if columns.get("pair") is not None:
        wanted["pair"] = columns["pair"]
    read = functools.partial(read_table, uri, header=section.get("header"), remedy="call it as in training")
    if not classes:
        return read(wanted), None
    separator = section.get("label_separator")
    try:
        named = {**wanted, "label": columns.get("label", "label")}
        table = read(named, label_separator=separator)
    except UserError:  # a source without labels; any other error recurs below
        return read(wanted), None
    number = {name: i for i, name in enumerate(classes)}
    if separator is not None:
        known = [[name for name in label.split(UNIT) if name in number] for label in table.columns["label"]]
        return table, multi_hot(known, classes)[0].astype(np.int32)
    return table, np.array([number.get(label, MISSING) for label in table.columns["label"]], np.int32)


def _lines(uri: str) -> Table:
    files = TextFiles(uri, uri.removeprefix("text:")).files
    texts, places = [], []
    for file in files:
        for number, line in lines_of(read_text(uri, file)):
            texts.append(line)
            places.append(f"line {number:,}" if len(files) == 1 else f"{file}, line {number:,}")
    return Table(uri, {"text": tuple(texts)}, tuple(places))


def text_dataset(info: DataInfo, arrays: Mapping[str, np.ndarray], table: Table) -> Dataset:
    """Return the Dataset of encoded texts, one per row of `table`.

    Arrays: "tokens" i32[N, T], "length" i32[N] and perhaps "token_types" u8[N, T].
    """
    return Dataset(
        info=info,
        size=len(table),
        example=lambda index, generator: {name: array[index] for name, array in arrays.items()},
        source=table,
        resident=dict(arrays),
        on_device=text_batch,
        arrays=dict(arrays),
        placement="device",
    )


def text_batch(raw: Mapping[str, Any], keys: Any = None) -> dict[str, Any]:
    """Return a task's batch of raw arrays: "segments" are 1 on text and 0 on padding; other arrays are unchanged."""
    tokens = raw["tokens"].astype(jnp.int32)
    segments = (jnp.arange(tokens.shape[1])[None] < raw["length"][:, None]).astype(jnp.int32)
    token_types = raw["token_types"].astype(jnp.int32) if "token_types" in raw else jnp.zeros_like(tokens)
    rest = {name: value for name, value in raw.items() if name not in ("tokens", "length", "token_types")}
    return {"tokens": tokens, "segments": segments, "token_types": token_types, **rest}
