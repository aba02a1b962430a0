"""What a notebook uses: `model = ssl_jax.load("runs/mae")`, NumPy in, NumPy out."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo, Params, Task


class Pretrained:
    """A task and its trained parameters.

    Images: u8 of the model's size are scaled and normalised as in training; floats are taken as normalised already.
    Text: {"text": [str, ...]} is tokenised and padded; {"tokens": i32[batch, time]} is taken as it is.
    """

    def __init__(self, task: Task, params: Params, info: DataInfo):
        self.task, self.params, self.info = task, params, info
        self._features = jax.jit(task.features)
        self._forward = jax.jit(task.forward)

    def features(self, batch: Mapping[str, Any], *, batch_size: int = 256) -> dict[str, np.ndarray]:
        """Named representations f32[examples, ...], computed `batch_size` examples at a time; nothing is masked."""
        batch = self.prepare(batch)
        count = len(next(iter(batch.values())))
        if count == 0:
            raise UserError("features: the batch is empty")
        size = min(batch_size, count)
        parts = []
        for start in range(0, count, size):
            piece = {name: _pad(value[start : start + size], size) for name, value in batch.items()}
            piece["position"] = np.arange(size, dtype=np.int32)
            keep = min(size, count - start)
            parts.append({name: np.asarray(value)[:keep] for name, value in self._features(self.params, piece).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def forward(self, batch: Mapping[str, Any], **inputs: Any) -> dict[str, np.ndarray]:
        """The task's own outputs by name (docs/interop.md), the whole batch at once; `inputs` join the batch (noise=...)."""
        batch = self.prepare({**batch, **inputs})
        count = len(next(iter(batch.values())))
        batch.setdefault("position", np.arange(count, dtype=np.int32))
        return jax.tree.map(np.asarray, dict(self._forward(self.params, batch)))

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The batch as the task takes it: u8 images normalised, text tokenised, shapes checked."""
        batch = {name: value if name == "text" else np.asarray(value) for name, value in batch.items()}
        if "text" in batch:
            batch.update(self._tokenise(batch.pop("text")))
        image = batch.get("image")
        if image is not None:
            if image.ndim == 3:
                image = image[..., None]
            expected = tuple(self.info.shapes["image"].shape) if "image" in self.info.shapes else image.shape[1:]
            if image.shape[1:] != expected:
                raise UserError(f"image: expected [batch, {', '.join(map(str, expected))}], got {list(image.shape)}")
            if image.dtype == np.uint8:
                mean, std = np.float32(self.info.mean or (0.0,)), np.float32(self.info.std or (1.0,))
                image = (image.astype(np.float32) / 255 - mean) / std
            batch["image"] = image.astype(np.float32)
        return batch

    def _tokenise(self, texts: Any) -> dict[str, np.ndarray]:
        tokenizer = self.info.tokenizer
        if tokenizer is None:
            raise UserError("text: this model has no tokenizer; pass tokens")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if hasattr(self.task, "tokenize"):  # a text tower, which reads a fixed length
            return self.task.tokenize(texts)
        rows = tokenizer.encode_batch(texts, special=self.task.name != "next_token")  # [CLS] ... [SEP] where there are such
        length = self.info.shapes["tokens"].shape[0] if "tokens" in self.info.shapes else max(map(len, rows))
        length = min(length, max(1, *map(len, rows)) if rows else 1)
        tokens = np.full((len(rows), length), tokenizer.pad_id or 0, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = row[:length], 1
        return {"tokens": tokens, "attention_mask": mask}


def _pad(value: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first example up to `size`, so that one compiled shape serves every batch."""
    return value if len(value) == size else np.concatenate([value, np.repeat(value[:1], size - len(value), axis=0)])


def load(path: str | os.PathLike[str], checkpoint: int | None = None) -> Pretrained:
    """A trained model from a work directory (its newest checkpoint, EMA weights where kept) or from `hf:DIR`.

    Raises UserError when there is no such directory, no checkpoint in it, or its files do not make a model.
    """
    path = str(path)
    if path.startswith("hf:"):
        from ssl_jax.interop import load_pretrained

        return Pretrained(*load_pretrained(path.removeprefix("hf:")))
    from ssl_jax import runs

    return Pretrained(*runs.restore(path, checkpoint))
