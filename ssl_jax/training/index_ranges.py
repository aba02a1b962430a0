"""Check that the indices in a batch (tokens, types, labels) lie within the tables in which they are looked up.

Inside jit an index beyond its table reads NaN or the last row, and the loss is non-finite or wrong. So indices are
checked on the host before training, and again when a loss is not finite.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssl_jax.errors import UserError

TABLES = {  # entry of a batch -> (the table that it indexes, how to make both agree)
    "tokens": ("the model's vocabulary", "use the tokenizer that the model was made for (data.tokenizer)"),
    "source": ("the model's vocabulary", "use the tokenizer that the model was made for (data.tokenizer)"),
    "target": ("the model's vocabulary", "use the tokenizer that the model was made for (data.tokenizer)"),
    "token_types": ("the table of token types", "raise model.token_types"),
    "positions": ("the model's positions", "raise model.context_length"),
    "label": ("the classes", "check the labels"),
    "start": ("a window", "raise data.max_length"),
    "end": ("a window", "raise data.max_length"),
    "is_random": ("the two answers", "check the data"),
}


def index_limits(task: Any) -> dict[str, int]:
    """Return, for each entry of a batch with indices, the number of rows of its table; {} for a task without indices."""
    limits = getattr(task, "index_limits", None)
    return {} if limits is None else dict(limits())


def check_dataset(task: Any, dataset: Any) -> None:
    """Raise UserError, naming the example, if an index of `dataset` (data.pipeline.Dataset) is outside its table.

    Checks data in memory: arrays, labels, the largest token of a corpus. No example is decoded.
    """
    limits = index_limits(task)
    for name, limit in limits.items():
        values = (dataset.arrays or {}).get(name)
        if values is None and name == "label":
            values = dataset.labels()
        if values is not None:
            found = _first_outside(values, limit)
            if found is not None:
                raise UserError(f"{dataset.source.describe(found)}: {_sentence(name, values[found], limit)}")
    largest = dataset.info.extra.get("largest_token")
    if "tokens" in limits and largest is not None and largest >= limits["tokens"]:
        raise UserError(f"{dataset.source.name}: {_sentence('tokens', largest, limits['tokens'])}")


def out_of_range(task: Any, batch: Mapping[str, Any]) -> str | None:
    """Return one line that names the entry of a batch with an index outside its table; None if there is none."""
    for name, limit in index_limits(task).items():
        if name not in batch or not np.issubdtype(batch[name].dtype, np.integer):
            continue
        values = np.asarray(batch[name])
        found = _first_outside(values, limit)
        if found is not None:
            index = f" (example {int(np.asarray(batch['index'])[found]):,})" if "index" in batch else ""
            return f"row {found} of the batch{index}: {_sentence(name, values[found], limit)}"
    return None


def _first_outside(values: Any, limit: int) -> int | None:
    """Return the first row with an index below 0 or not below `limit`."""
    if len(values) == 0 or (values.min() >= 0 and values.max() < limit):
        return None
    rows = np.asarray(values).reshape(len(values), -1)
    return int(np.argmax(((rows < 0) | (rows >= limit)).any(axis=1)))


def _sentence(name: str, row: Any, limit: int) -> str:
    row = np.asarray(row)
    wrong = row.reshape(-1)[((row < 0) | (row >= limit)).reshape(-1)][0]
    table, advice = TABLES.get(name, ("its table", "check the data"))
    return f"{name} {int(wrong):,} is not among {table}, 0 to {limit - 1:,}; {advice}"
