"""The kind "pairs": images with captions, from tables of paths, tar shards, TFDS or any other source with both."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.config import read
from ssl_jax.data.existing import existing
from ssl_jax.data.images import colour, decode
from ssl_jax.data.images.augment import Augment
from ssl_jax.data.images.normalization import moments, source_moments
from ssl_jax.data.images.settings import ImageDataSettings, label_shape, labelled
from ssl_jax.data.pipeline import BadExample, Dataset
from ssl_jax.data.sources import HINT, Source
from ssl_jax.data.text.supervised import tokenizer_of
from ssl_jax.data.text.tokenizers import Tokenizer, TokenizerSettings
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

TOKENIZER_EXAMPLES = 1_000_000  # a tokenizer is trained on the captions of at most this many evenly spaced examples


@dataclasses.dataclass(frozen=True)
class Affine:
    """A random bilinear rotation, zoom and shift; pixels from outside the image are `fill`."""

    rotate: float = 10.0  # degrees either way
    zoom: tuple[float, float] = (0.9, 1.1)
    shift: float = 0.05  # of the image's side, either way
    fill: int = 255

    def __post_init__(self):
        if not 0 <= self.rotate <= 180:
            raise UserError(f"rotate={self.rotate}: must lie in [0, 180] degrees")
        if not 0 < self.zoom[0] <= self.zoom[1] <= 10:
            raise UserError(f"zoom={self.zoom}: must be (from, to) with 0 < from <= to <= 10")
        if not 0 <= self.shift <= 1:
            raise UserError(f"shift={self.shift}: must lie in [0, 1]")
        if not 0 <= self.fill <= 255:
            raise UserError(f"fill={self.fill}: must lie in [0, 255]")

    def __call__(self, image, generator: np.random.Generator):
        """Return the transformed PIL image, of the same size."""
        from PIL import Image

        width, height = image.size
        angle = math.radians(generator.uniform(-self.rotate, self.rotate))
        zoom = math.exp(generator.uniform(*np.log(self.zoom)))
        dx, dy = generator.uniform(-self.shift, self.shift, 2) * (width, height)
        a, b = math.cos(angle) / zoom, math.sin(angle) / zoom  # PIL's transform maps output pixels to input pixels
        cx, cy = (width - 1) / 2, (height - 1) / 2
        x0, y0 = cx - a * (cx + dx) - b * (cy + dy), cy + b * (cx + dx) - a * (cy + dy)
        fill = self.fill if image.mode == "L" else (self.fill,) * 3
        bilinear = Image.Resampling.BILINEAR
        return image.transform(image.size, Image.Transform.AFFINE, (a, b, x0, -b, a, y0), bilinear, fillcolor=fill)


@dataclasses.dataclass(frozen=True)
class PairAugment(Augment):
    """The augmentations of a training image, in this order: crop, flip, randaugment, affine, jitter, greyscale, blur, solarize.

    Flips and strong jitter invalidate a caption that names a side or a colour ("left arrow", "red heart").
    """

    affine: Affine | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.erase is not None:
            raise UserError("erase: cannot be used with pairs, whose caption may name what is erased; omit it")


@dataclasses.dataclass(frozen=True)
class PairsSettings(ImageDataSettings):
    """The config's section `data` for images with captions. Evaluation takes the first caption."""

    context_length: int = 77  # tokens of a caption, including special ones; longer captions are truncated and counted
    tokenizer: TokenizerSettings = dataclasses.field(default_factory=lambda: TokenizerSettings("wordpiece"))
    augment: PairAugment = PairAugment()
    eval_crop: float = 1.0
    normalize: str | tuple | None = "clip"
    placement: str = "host"

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.context_length <= 65536:
            raise UserError(
                f"context_length={self.context_length}: must be at least 2 tokens, since the last one ends the text"
            )
        if self.placement not in ("auto", "host"):
            raise UserError(f'placement={self.placement!r}: pairs are drawn and decoded on the host; use "host"')


def build(
    section: Any,
    *,
    split: str = "train",
    train: bool = True,
    task_section: Any = None,
    workdir: str | None = None,
    unlabelled: bool = False,
) -> Dataset:
    """Build the pairs of the config's section `data`; train=False: no augmentation, and the first of several captions;
    unlabelled=True: include examples without a label, with the label MISSING.

    Task batches: {"image": f32[B, H, W, 3] normalised, "tokens": i32[B, T], "truncated": bool[B], "label"?: i32[B]}. A
    tokenizer without a published vocabulary is trained on the training captions and stored in the work directory.
    `info.extra` holds "class_texts", a description of each class, if the source has one.
    """
    settings = read(PairsSettings, section, "data")
    training, source = settings.open(settings.train), settings.source(split)
    if not source.has_text:
        raise UserError(f"{source.name}: the column of captions is unknown; set data.columns.text")
    size = _size(settings, source)
    tokenizer = tokenizer_of(settings.tokenizer, workdir, lambda: _all_captions(training))
    encode = Encode(tokenizer, settings.context_length)
    augment = settings.augment if train else PairAugment()
    examples = Examples(source, size, encode, augment, settings.eval_crop)
    mean, std = moments(settings.normalize, 3, lambda: source_moments(training, tuple(size), 3, settings.eval_crop))
    shapes = {
        "image": jax.ShapeDtypeStruct((*size, 3), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((settings.context_length,), jnp.int32),
    }
    shapes |= label_shape(source)
    extra = {} if source.class_texts is None else {"class_texts": source.class_texts}
    info = DataInfo(shapes=shapes, classes=tuple(source.classes), mean=mean, std=std, tokenizer=tokenizer, extra=extra)
    dataset = Dataset(
        info=info,
        size=len(source),
        example=examples,
        source=source,
        on_device=functools.partial(_on_device, settings=augment, mean=mean, std=std),
        placement="host",
        workers=settings.workers,
        skip_bad=settings.on_bad_example == "skip",
        class_balanced=train and settings.sampling == "class_balanced",
    )
    scan = labelled(source) or split == "test"
    return existing(settings.part(dataset, split), scan=scan, augmented=train, unlabelled=unlabelled)


@dataclasses.dataclass
class Encode:
    """Text -> token ids of one length: the tokenizer's own special tokens, a token that ends the text, padding.

    A long text is truncated before its end token, at which the text tower pools (CLIP's tokenize).
    """

    tokenizer: Tokenizer
    length: int

    def __call__(self, text: str) -> tuple[np.ndarray, bool]:
        """Return (i32[length], whether the text was cut)."""
        ids, end = self.tokenizer.encode(text, special=True), self.tokenizer.separator_id
        if end is not None and (not ids or ids[-1] != end):
            ids = [*ids, end]
        cut = len(ids) > self.length
        if cut:
            ids = [*ids[: self.length - 1], end] if end is not None else ids[: self.length]
        tokens = np.full(self.length, self.tokenizer.pad_id or 0, np.int32)
        tokens[: len(ids)] = ids
        return tokens, cut

    def batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (i32[n, length], bool[n]: whether each text was cut)."""
        rows = [self(text) for text in texts]
        return np.stack([tokens for tokens, _ in rows]), np.array([cut for _, cut in rows])


@dataclasses.dataclass
class Examples:
    """index -> {"image": u8[height, width, 3], "tokens": i32[T], "truncated": bool, "label"?}.

    With a generator, draw a picture (if the source has several, `draw`) and a caption, and augment the image.
    """

    source: Source
    size: tuple[int, int]
    encode: Encode
    augment: PairAugment
    eval_crop: float

    def __call__(self, index: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        draw = self.source.draw
        try:
            example = draw(index, generator) if draw is not None and generator is not None else self.source[index]
            captions = captions_of(example)
            if not captions:
                raise decode.Unreadable("has an empty caption")
            caption = captions[0] if generator is None else captions[generator.integers(len(captions))]
            image = self._image(example, generator)
        except decode.Unreadable as error:
            raise BadExample(f"{self.source.describe(index)} {error}; {HINT}") from None
        tokens, cut = self.encode(caption)
        result = {"image": np.asarray(image, np.uint8), "tokens": tokens, "truncated": np.bool_(cut)}
        return result | {"label": np.asarray(example["label"], np.int32)} if "label" in example else result

    def _image(self, example: Mapping[str, Any], generator: np.random.Generator | None):
        if generator is None:
            return decode.evaluation_image(example, self.size, 3, self.eval_crop)
        image = decode.augment(decode.stored_image(example, 3), generator, self.augment, self.size, self.eval_crop)
        return image if self.augment.affine is None else self.augment.affine(image, generator)


def captions_of(example: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the non-empty captions of an example: one or several, text or bytes, under "captions", "caption" or "text".

    TFDS stores COCO's as {"text": [...], "id": [...]}.
    """
    value = next((example[name] for name in ("captions", "caption", "text") if name in example), ())
    if isinstance(value, Mapping):
        value = value.get("text", ())
    if isinstance(value, str | bytes):
        value = (value,)
    elif value is None:
        value = ()
    elif isinstance(value, np.ndarray) and value.ndim == 0:
        value = (value.item(),)
    texts = (item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in value)
    return tuple(text for text in (text.strip() for text in texts) if text)


def _on_device(raw, keys, *, settings, mean, std):
    return {**raw, "image": colour.finish(jnp.asarray(raw["image"]), keys, settings, high=255.0, mean=mean, std=std)}


def _size(settings: PairsSettings, source: Source) -> tuple[int, int]:
    """Return (height, width) of the task's images; raise UserError if images may differ in size."""
    if settings.size is not None:
        return settings.size
    if source.arrays is not None and "image" in source.arrays:
        return source.arrays["image"].shape[1:3]
    raise UserError(
        f"data.image_size is missing: the images of {source.name} may differ in size; set it, such as image_size=224"
    )


def _all_captions(source: Source) -> Iterator[str]:
    """Yield the captions on which a tokenizer is trained, read without images if the source supports that."""
    own = source.captions
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), TOKENIZER_EXAMPLES)).astype(int)):
        try:
            yield from own(int(index)) if own is not None else captions_of(source[int(index)])
        except BadExample:
            continue  # reported or skipped when the stream reads it
