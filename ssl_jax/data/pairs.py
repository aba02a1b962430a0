"""The kind "pairs": images with captions, from tables of paths, tar shards, TFDS or any source whose examples hold both."""

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
from ssl_jax.data.images.dataset import (
    NORMALIZE,
    STATISTICS_EXAMPLES,
    check_columns,
    holdout,
    labelled,
    pixel_statistics,
)
from ssl_jax.data.labels import match_classes
from ssl_jax.data.pipeline import BadExample, Dataset
from ssl_jax.data.sources import HINT, Source, load_source
from ssl_jax.data.sources.image_table import require_images
from ssl_jax.data.text.supervised import tokenizer_of
from ssl_jax.data.text.tokenizers import Tokenizer, TokenizerSettings
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

# The statistics of CLIP's training images (Radford et al. 2021, published with its code).
NORMALIZATIONS = {**NORMALIZE, "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))}
TOKENIZER_EXAMPLES = 1_000_000  # a tokenizer is trained on the captions of so many examples, evenly spaced


@dataclasses.dataclass(frozen=True)
class Affine:
    """A random turn, zoom and shift, bilinear; what moves in from outside is `fill`."""

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
        """The transformed PIL image, of the same size."""
        from PIL import Image

        width, height = image.size
        angle = math.radians(generator.uniform(-self.rotate, self.rotate))
        zoom = math.exp(generator.uniform(*np.log(self.zoom)))
        dx, dy = generator.uniform(-self.shift, self.shift, 2) * (width, height)
        a, b = math.cos(angle) / zoom, math.sin(angle) / zoom  # PIL wants where each output pixel comes from
        cx, cy = (width - 1) / 2, (height - 1) / 2
        x0, y0 = cx - a * (cx + dx) - b * (cy + dy), cy + b * (cx + dx) - a * (cy + dy)
        fill = self.fill if image.mode == "L" else (self.fill,) * 3
        bilinear = Image.Resampling.BILINEAR
        return image.transform(image.size, Image.Transform.AFFINE, (a, b, x0, -b, a, y0), bilinear, fillcolor=fill)


@dataclasses.dataclass(frozen=True)
class PairAugment(Augment):
    """What a training image goes through, in this order: crop, flip, randaugment, affine, jitter, greyscale, blur, solarize.

    A caption may name a side or a colour ("left arrow", "red heart"): flips and strong jitter then make it false.
    """

    affine: Affine | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.erase is not None:
            raise UserError("erase: is not for pairs; a caption may name what is erased")


@dataclasses.dataclass(frozen=True)
class PairsSettings:
    """The config's section `data` for images with captions.

    Evaluation scales an image so that `image_size` is `eval_crop` of it in the tighter direction, cuts centrally, and takes
    the first caption.
    """

    train: str
    batch_size: int
    test: str | None = None
    holdout: float = 0.1  # without `test`, this share of the training source is held out (as for images)
    image_size: int | tuple | None = None  # int or (height, width); needed where images differ in size
    context_length: int = 77  # tokens of a caption, special ones included; longer captions are cut and counted
    tokenizer: TokenizerSettings = dataclasses.field(default_factory=lambda: TokenizerSettings("wordpiece"))
    augment: PairAugment = PairAugment()
    eval_crop: float = 1.0
    normalize: str | tuple | None = "clip"  # "clip", "imagenet", "half", "dataset", None ([0, 1]) or (means, stds)
    columns: Mapping | None = None  # of a table: dict(image=..., text=..., label=...); None: not read; default: usual names
    placement: str = "host"
    workers: int = 0  # processes that decode; 0: threads of this process
    on_bad_example: str = "error"  # or "skip": unreadable examples and those without a label are left out and counted
    classes: tuple = ()  # class names in their order; default: the training source's, if it has labels
    unknown_classes: str = "error"  # test examples of a class that training does not have; or "skip": left out and counted
    dir: str | None = None  # where prepared TFDS data lies

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: must be at least 1")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout={self.holdout}: must lie in [0, 1)")
        sizes = (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ()
        if any(not isinstance(n, int) or not 1 <= n <= 16384 for n in sizes) or len(sizes) > 2:
            raise UserError(f"image_size={self.image_size}: must be a number of pixels or (height, width)")
        if not 2 <= self.context_length <= 65536:
            raise UserError(f"context_length={self.context_length}: must be at least 2 tokens, the second ends the text")
        if not 0 < self.eval_crop <= 1:
            raise UserError(f"eval_crop={self.eval_crop}: must lie in (0, 1]")
        if isinstance(self.normalize, str) and self.normalize not in ("dataset", *NORMALIZATIONS):
            raise UserError(
                f"normalize={self.normalize!r}: must be {', '.join(NORMALIZATIONS)}, dataset, None or (means, stds)"
            )
        if self.placement not in ("auto", "host"):
            raise UserError(f'placement={self.placement!r}: pairs are drawn and decoded on the host; use "host"')
        if not 0 <= self.workers <= 256:
            raise UserError(f"workers={self.workers}: must lie in [0, 256]")
        if self.on_bad_example not in ("error", "skip"):
            raise UserError(f'on_bad_example={self.on_bad_example!r}: must be "error" or "skip"')
        if self.unknown_classes not in ("error", "skip"):
            raise UserError(f'unknown_classes={self.unknown_classes!r}: must be "error" or "skip"')
        check_columns(self.columns)

    def source(self, split: str) -> Source:
        uri = self.test if split == "test" and self.test is not None else self.train
        return load_source(uri, dir=self.dir, columns=self.columns)


def build(
    section: Any,
    *,
    split: str = "train",
    train: bool = True,
    task_section: Any = None,
    workdir: str | None = None,
) -> Dataset:
    """The pairs of the config's section `data`; train=False: no augmentation, and the first of several captions.

    Task batches: {"image": f32[B, H, W, 3] normalised, "tokens": i32[B, T], "truncated": bool[B], "label"?: i32[B]}. A
    tokenizer without a published vocabulary is trained on the training captions and kept in the work directory.
    `info.extra` holds "class_texts", what each class is in words, where the source knows it.
    """
    settings = read(PairsSettings, section, "data")
    training = settings.source("train")
    classes, named_by = (settings.classes, "data.classes") if settings.classes else (training.classes, settings.train)
    source = settings.source(split)
    require_images(source)
    source = match_classes(source, classes, named_by, settings.unknown_classes)
    if not source.has_text:
        raise UserError(f"{source.name}: no column is known to hold the captions; set data.columns.text")
    size = _size(settings, source)
    init = {"init": (task_section or {}).get("init_text")}  # a text tower reads what the run it starts from read
    tokenizer = tokenizer_of(settings.tokenizer, init, workdir, lambda: _all_captions(training))
    encode = Encode(tokenizer, settings.context_length)
    augment = settings.augment if train else PairAugment()
    examples = Examples(source, size, encode, augment, settings.eval_crop)
    mean, std = _normalization(settings, training, size)
    shapes = {
        "image": jax.ShapeDtypeStruct((*size, 3), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((settings.context_length,), jnp.int32),
    }
    if labelled(source):
        shapes["label"] = jax.ShapeDtypeStruct((), jnp.int32)
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
    )
    if settings.test is None:
        dataset = holdout(dataset, split, settings.holdout)
    return existing(dataset, scan=labelled(source) or split == "test", augmented=train)


@dataclasses.dataclass
class Encode:
    """Text -> token ids of one length: the tokenizer's own special tokens, a token that ends the text, padding.

    A text that is too long loses its last tokens but keeps the one that ends it, where pooling reads (CLIP's tokenize).
    """

    tokenizer: Tokenizer
    length: int

    def __call__(self, text: str) -> tuple[np.ndarray, bool]:
        """(i32[length], whether the text was cut)."""
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
        """(i32[n, length], bool[n])."""
        rows = [self(text) for text in texts]
        return np.stack([tokens for tokens, _ in rows]), np.array([cut for _, cut in rows])


@dataclasses.dataclass
class Examples:
    """index -> {"image": u8[height, width, 3], "tokens": i32[T], "truncated": bool, "label"?}.

    With a generator a picture (of sources that have several, `draw`) and a caption are drawn, and the image is augmented.
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
        return result | {"label": np.int32(example["label"])} if "label" in example else result

    def _image(self, example: Mapping[str, Any], generator: np.random.Generator | None):
        if generator is None:
            return evaluation_image(example, self.size, self.eval_crop)
        image = decode.augment(_decoded(example), generator, self.augment, self.size, self.eval_crop)
        return image if self.augment.affine is None else self.augment.affine(image, generator)


def evaluation_image(example: Mapping[str, Any], size: tuple[int, int], share: float) -> np.ndarray:
    """An example's image as evaluation sees it, u8[*size, 3]; decode.Unreadable where there is none."""
    return np.asarray(decode.centre_crop(_decoded(example), size, share), np.uint8)


def _decoded(example: Mapping[str, Any]):
    stored = example.get("image")
    if stored is None:
        raise decode.Unreadable("has no image")
    return decode.decode(stored, 3) if isinstance(stored, bytes) else decode.from_array(np.asarray(stored), 3)


def captions_of(example: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions of an example, without empty ones: under "captions", "caption" or "text", as text, bytes or several.

    TFDS keeps COCO's as {"text": [...], "id": [...]}.
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
    size = settings.image_size
    if size is not None:
        return (size, size) if isinstance(size, int) else tuple(size) * (2 // len(size))
    if source.arrays is not None and "image" in source.arrays:
        return source.arrays["image"].shape[1:3]
    raise UserError(
        f"data.image_size is missing: the images of {source.name} may differ in size; set it, such as image_size=224"
    )


def _all_captions(source: Source) -> Iterator[str]:
    """The captions that a tokenizer is trained on, read without the images where the source can."""
    own = source.captions
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), TOKENIZER_EXAMPLES)).astype(int)):
        try:
            yield from own(int(index)) if own is not None else captions_of(source[int(index)])
        except BadExample:
            continue  # told, or skipped, when the stream meets it


def _normalization(settings: PairsSettings, training: Source, size: tuple[int, int]) -> tuple[tuple, tuple]:
    """(mean, std) per channel of pixels in [0, 1]."""
    wanted = settings.normalize
    if wanted is None:
        return (0.0,) * 3, (1.0,) * 3
    if wanted == "dataset":
        return _statistics(training, size, settings.eval_crop)
    mean, std = NORMALIZATIONS[wanted] if isinstance(wanted, str) else (wanted if len(wanted) == 2 else ((), ()))
    good = all(isinstance(v, tuple) and len(v) in (1, 3) for v in (mean, std))
    if not good or not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
        raise UserError(f"data.normalize={wanted}: expected (means, stds) such as ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))")
    return tuple(map(float, mean * (3 // len(mean)))), tuple(map(float, std * (3 // len(std))))


@functools.lru_cache(maxsize=8)
def _statistics(source: Source, size: tuple[int, int], share: float) -> tuple[tuple, tuple]:
    """Over 2,048 evenly spaced training images."""
    images = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), STATISTICS_EXAMPLES)).astype(int)):
        try:
            images.append(evaluation_image(source[int(index)], size, share))
        except (decode.Unreadable, BadExample):
            continue
    if not images:
        raise UserError(f"{source.name}: not one of its images can be read")
    return pixel_statistics(np.stack(images))
