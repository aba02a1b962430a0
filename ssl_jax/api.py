"""The notebook API: `model = ssl_jax.load("runs/mae")`, NumPy in, NumPy out."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ssl_jax.data.images.decode import Unreadable, convert, evaluation_image, upright
from ssl_jax.data.images.values import as_unit_range
from ssl_jax.data.text.encoding import encode_sentences, encode_texts
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo, Params, Task, by_default
from ssl_jax.training.rules import flatten

# The entries that a batch must have, by the task's kind of data.
INPUTS = {
    "images": ("image",),
    "tokens": ("tokens",),
    "sequences": ("tokens",),
    "pairs": ("image", "tokens"),
}


class Pretrained:
    """A task and its trained parameters.

    Images of the model's size: {"image": [batch, height, width(, channels)]}, u8 or floats in [0, 1] (other dtypes are
    converted by data.images.values.as_stored), are normalised as in training; {"pixel_values": f32[...]} are already
    normalised. Text: {"text": [str, ...]} is tokenised and padded; {"tokens": i32[batch, time]} is used unchanged.
    """

    def __init__(self, task: Task, params: Params, info: DataInfo, eval_crop: float = 1.0):
        self.task, self.params, self.info, self.eval_crop = task, params, info, eval_crop
        self._features = jax.jit(task.features)
        self._forward = jax.jit(task.forward)

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """Return a supervised model's prediction for each input as a dictionary (`predictions`).

        inputs: a batch, or any input of `features`; for question answering, (question, context) or a list of these; for
        translation, a text or a list of texts.
        """
        from ssl_jax.predictions import predict

        return predict(self.task, self.params, self.info, inputs, lambda batch: self.features(batch)["logits"])

    def features(self, batch: Any, *, batch_size: int = 256) -> dict[str, np.ndarray]:
        """Return named representations f32[examples, ...], computed `batch_size` examples at a time, without masking.

        batch: a mapping of arrays; or images of any size (a path, a PIL image, an array, or a list of these), which are
        resized and cropped as in evaluation; or a text, a list of texts, or of pairs of texts.
        """
        batch = self.prepare(batch if isinstance(batch, Mapping) else self.batch_of(batch))
        self._need(batch, any)
        count = _count(batch)
        if count == 0:
            raise UserError("features: the batch is empty; give at least one example")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        size = min(batch_size, count)
        parts = []
        for start in range(0, count, size):
            piece = {name: _pad(value[start : start + size], size) for name, value in batch.items()}
            piece["position"] = np.arange(size, dtype=np.int32)
            keep = min(size, count - start)
            parts.append({name: np.asarray(value)[:keep] for name, value in self._features(self.params, piece).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def forward(self, batch: Mapping[str, Any], **inputs: Any) -> dict[str, np.ndarray]:
        """Return the task's outputs by name (docs/interop.md) for the whole batch; `inputs` are added to it (noise=...).

        The numbers of images and texts may differ: each image is compared with each text.
        """
        batch = self.prepare({**batch, **inputs})
        self._need(batch, all)
        count = len(batch["image"]) if self.task.data == "pairs" else _count(batch)
        batch.setdefault("position", np.arange(count, dtype=np.int32))
        return jax.tree.map(np.asarray, dict(self._forward(self.params, batch)))

    def batch_of(self, inputs: Any) -> dict[str, Any]:
        """Return images or texts as a batch."""
        if self.task.data == "images" or self.task.data == "pairs" and not texts_only(inputs):
            return {"image": self._read_images(inputs)}
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        pairs = [isinstance(text, tuple | list) and len(text) == 2 for text in texts]
        if not any(pairs):
            return {"text": texts}
        if not all(pairs):
            raise UserError(f"text: number {pairs.index(False)} is not a pair of texts, but others are; give pairs only")
        length = self.info.shapes["tokens"].shape[0]
        tokens, types, size, _ = encode_sentences(self.info.tokenizer, *map(list, zip(*texts, strict=True)), length)
        return {"tokens": tokens, "token_types": types.astype(np.int32),
                "attention_mask": (np.arange(length) < size[:, None]).astype(np.int32)}  # fmt: skip

    def _read_images(self, inputs: Any) -> np.ndarray:
        """Return images resized and cropped as in evaluation, u8[images, height, width, channels]."""
        height, width, channels = self.info.shapes["image"].shape
        if isinstance(inputs, np.ndarray) or hasattr(inputs, "__array__") and not hasattr(inputs, "mode"):
            inputs = np.asarray(inputs)
            single = inputs.ndim == 2 or inputs.ndim == 3 and inputs.shape[-1] in (1, 3, 4)
            inputs = [inputs] if single else list(inputs)
        elif isinstance(inputs, str | os.PathLike) or hasattr(inputs, "mode"):
            inputs = [inputs]
        images = []
        for i, one in enumerate(inputs):
            try:
                stored = one
                if isinstance(one, str | os.PathLike):
                    with open(one, "rb") as file:
                        stored = file.read()
                elif hasattr(one, "mode"):  # a PIL image
                    stored = np.asarray(convert(upright(one), channels))
                images.append(evaluation_image({"image": stored}, (height, width), channels, self.eval_crop))
            except OSError as error:
                raise UserError(f"image: {one}: {error.strerror}") from None
            except Unreadable as error:
                raise UserError(f"image: {one if isinstance(one, str) else f'number {i}'} {error}") from None
        return np.stack(images) if images else np.zeros((0, height, width, channels), np.uint8)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the task's input batch: images normalised, text tokenised; shapes, ranges and ids are checked."""
        batch = {name: value if name == "text" else np.asarray(value) for name, value in batch.items()}
        if "text" in batch:
            batch.update(self._tokenise(batch.pop("text")))
        names = [name for name in ("image", "pixel_values") if name in batch]
        if len(names) > 1:
            raise UserError("image: give either image (pixels) or pixel_values (already normalised), not both")
        image = None
        if names:
            image = batch["image"] = self._images(names[0], batch.pop(names[0]))
        if "noise" in batch and hasattr(self.task, "encoder") and image is not None:
            expected = [len(image), self.task.encoder.patches]
            if list(batch["noise"].shape) != expected:
                raise UserError(f"noise: expected [batch, patches] = {expected}, got {list(batch['noise'].shape)}")
        self._check_ids(batch, "tokens", "token_embedding")
        for name, table in (("attention_mask", ""), ("token_type_ids", "type_embedding")):
            if name in batch and "tokens" in batch and batch[name].shape != batch["tokens"].shape:
                raise UserError(
                    f"{name}: expected the shape of tokens, {list(batch['tokens'].shape)}, got {list(batch[name].shape)}"
                )
            if table:
                self._check_ids(batch, name, table)
        return batch

    def _images(self, name: str, image: np.ndarray) -> np.ndarray:
        """Return the task's input images f32[batch, height, width, channels]; raise UserError for other shapes or ranges."""
        image = image[..., None] if image.ndim == 3 else image
        expected = tuple(self.info.shapes["image"].shape) if "image" in self.info.shapes else image.shape[1:]
        if image.ndim != 4 or image.shape[1:] != expected:
            other = "; load(path, image_size=(height, width)) changes it" if "encoder" in self.params else ""
            raise UserError(f"{name}: expected [batch, {', '.join(map(str, expected))}], got {list(image.shape)}{other}")
        if name == "pixel_values":
            if not np.issubdtype(image.dtype, np.floating) or not np.isfinite(image).all():
                raise UserError(f"pixel_values: expected finite, normalised floats, got {image.dtype}; give pixels as image")
            return image.astype(np.float32)
        try:
            image = as_unit_range(image)
        except UserError as error:
            floats = np.issubdtype(image.dtype, np.floating)
            raise UserError(f"{error}{'; give normalised images as pixel_values' if floats else ''}") from None
        mean, std = np.float32(self.info.mean or (0.0,)), np.float32(self.info.std or (1.0,))
        return (image - mean) / std

    def _check_ids(self, batch: Mapping[str, np.ndarray], name: str, table: str) -> None:
        """Raise UserError for ids outside the embedding table, whose embedding would be NaN."""
        ids = batch.get(name)
        if ids is None:
            return
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"{name}: expected whole numbers [batch, time], got {ids.dtype} {list(ids.shape)}")
        rows = [len(leaf) for path, leaf in flatten(self.params).items() if path.split("/")[-1] == table] or [1]
        if ids.size and not 0 <= ids.min() <= ids.max() < min(rows):
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise UserError(f"{name}: {wrong} is not among the model's {min(rows)} ids, 0 to {min(rows) - 1}")

    def _need(self, batch: Mapping[str, Any], quantity: Callable[[Iterable[bool]], bool]) -> None:
        needed = INPUTS.get(self.task.data, ())
        if needed and not quantity(name in batch for name in needed):
            held = ", ".join(batch) or "nothing"
            raise UserError(f"batch: a model of {self.task.data} takes {' and '.join(needed)}, but the batch holds {held}")

    def _tokenise(self, texts: Any) -> dict[str, np.ndarray]:
        tokenizer = self.info.tokenizer
        if tokenizer is None:
            raise UserError("text: this model has no tokenizer; give tokens")
        texts = [texts] if isinstance(texts, str) else list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text: number {i} is {text!r:.60}, expected a text")
        if not by_default(self.task, "tokenize"):  # a text tower, which has a fixed length
            return self.task.tokenize(texts)
        causal = self.task.data == "tokens"
        longest = self.info.shapes["tokens"].shape[0] - causal  # the last token of a causal window is only predicted
        if causal:
            tokens, length = encode_texts(tokenizer, texts, longest)
        else:
            tokens, _, length, _ = encode_sentences(tokenizer, texts, None, longest)
        width = max(1, *length) if len(texts) else 1
        mask = (np.arange(width) < length[:, None]).astype(np.int32)
        return {"tokens": tokens[:, :width], "attention_mask": mask}


def texts_only(inputs: Any) -> bool:
    """Return whether the inputs of an image-text model are texts: strings that do not name a file."""
    texts = [inputs] if isinstance(inputs, str) else list(inputs) if isinstance(inputs, list | tuple) else [None]
    return all(isinstance(text, str) and not os.path.isfile(text) for text in texts)


def _count(batch: Mapping[str, np.ndarray]) -> int:
    """Return the number of examples; raise UserError if the arrays' lengths differ."""
    counts = {name: len(value) for name, value in batch.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"batch: {', '.join(f'{count} of {name}' for name, count in counts.items())}; expected the same number of each"
        )
    return next(iter(counts.values()), 0)


def _pad(value: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first example up to `size`, so that one compiled shape serves every batch."""
    return value if len(value) == size else np.concatenate([value, np.repeat(value[:1], size - len(value), axis=0)])


def load(
    path: str | os.PathLike[str], checkpoint: int | None = None, *, image_size: tuple[int, int] | None = None
) -> Pretrained:
    """Return a trained model from a work directory or from `hf:DIR`.

    checkpoint: a step; by default the best one if the run selected one (checkpoint.best), else the newest. Its moving average
    is used if there is one. image_size: (height, width) of images for an image encoder or classifier, if it differs from that
    of training; learned positions are interpolated. Raise UserError if the directory does not exist, has no checkpoint, or
    does not contain a valid model.
    """
    parts = _parts(str(path), checkpoint)
    crop = _eval_crop(str(path), parts[0], parts[2])
    return Pretrained(*(parts if image_size is None else at_size(*parts, image_size)), eval_crop=crop)


def _eval_crop(path: str, task: Task, info: DataInfo) -> float:
    """Return the share of an image that the evaluation of a run or of imported weights crops."""
    from ssl_jax.data.images.settings import eval_crop
    from ssl_jax.workdir import Workdir

    config = None if path.startswith("hf:") else Workdir.at(path).config()
    return eval_crop(config.data if config else {}, task.data, info)


def at_size(task: Task, params: Params, info: DataInfo, image_size: tuple[int, int]) -> tuple[Task, Params, DataInfo]:
    """Return (task, parameters, data info) of an image encoder or classifier for images of another size."""
    encoder = getattr(task, "encoder", None)
    if encoder is None or "decoder" in params:
        raise UserError(f"image_size={image_size}: a {task.name} model has a fixed size; use an image encoder or a classifier")
    if len(image_size) != 2 or not all(isinstance(n, int) and n > 0 for n in image_size):
        raise UserError(f"image_size={image_size!r}: expected (height, width) in pixels")
    shape, other = (*image_size, encoder.channels), encoder.for_size(image_size)
    params = {**params, "encoder": other.adapt(params["encoder"], encoder.grid)}
    shapes = {**info.shapes, "image": jax.ShapeDtypeStruct(shape, info.shapes["image"].dtype)}
    info = dataclasses.replace(info, shapes=shapes)
    return dataclasses.replace(task, encoder=other, info=info), params, info


def _parts(path: str, checkpoint: int | None) -> tuple[Task, Params, DataInfo]:
    if path.startswith("hf:"):
        from ssl_jax.interop import load_pretrained

        return load_pretrained(path.removeprefix("hf:"))
    from ssl_jax import runs

    return runs.restore(path, checkpoint)
