"""A summary of a run in a few lines, printed before it starts."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ssl_jax.task import tokens_of


def overview(parts: Any, trainer: Any, evaluators: Sequence[str] = ()) -> str:
    """Return the lines printed before training: data, length, model, cost, memory and the `evaluators` of a run."""
    from ssl_jax.interop.convert import hindrance
    from ssl_jax.training import length
    from ssl_jax.training.optimizer import multipliers

    program, stream, flops = trainer.program, parts.stream, parts.task.flops()
    total = length.in_steps(parts.training.duration, "training.duration", stream)
    frozen = jax.tree.leaves(multipliers(parts.optimizer, program.params).frozen)
    counts = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(program.params)]
    trained = sum(count for count, fixed in zip(counts, frozen, strict=True) if not fixed)
    state = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(program.abstract))
    rows = {
        "data": _data(parts),
        "length": _length(parts.training.duration, total, stream),
        "model": f"{quantity(sum(counts))} parameters" + (f", {quantity(trained)} trained" if trained < sum(counts) else ""),
        "cost": f"{quantity(flops, 'FLOPs')} an example, {quantity(flops * stream.batch_size, 'FLOPs')} a step"
        if flops
        else "",
        "memory": f"{quantity(state, 'B')} of parameters and optimizer state on each device",
        "chosen": ", ".join(f"{key}={value}" for key, value in parts.chosen.items()),
        "evaluators": ", ".join(evaluators),
        "export": f"not to hf:DIR, for {prevents}" if (prevents := hindrance(parts.task)) else "",
    }
    return "\n".join(f"{name:11} {text}" for name, text in rows.items() if text)


def _data(parts: Any) -> str:
    dataset, info = parts.stream.dataset, parts.info
    shapes = [f"{name} {' x '.join(map(str, s.shape))}" for name, s in info.shapes.items() if s.shape]
    words = [f"{dataset.size:,} training examples" + (f" ({', '.join(shapes)})" if shapes else "")]
    if dataset.source.name != parts.config.data.get("train"):  # a corpus's name says which part is held out
        words.append(f"from {dataset.source.name}")
    if info.classes:
        words.append(f"{len(info.classes)} classes")
    if parts.part is not None:
        words.append(f"{parts.part('validation', False).size:,} more held out for selection")
    return ", ".join(words)


def _length(duration: str, total: int | None, stream: Any) -> str:
    if total is None:
        return f"{duration}, {stream.batch_size:,} examples a step"
    examples, tokens = total * stream.batch_size, tokens_of(stream.dataset.info)
    words = [f"{total:,} steps of {stream.batch_size:,} examples", f"{examples / stream.dataset.size:.3g} epochs"]
    return ", ".join(words + ([f"{quantity(examples * tokens)} tokens"] if tokens > 1 else []))


def quantity(value: float, unit: str = "") -> str:
    """Return a number with three digits and its unit: "512", "1.23 M", "4.5 GB"."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g} {prefixes[0]}{unit}".strip()
