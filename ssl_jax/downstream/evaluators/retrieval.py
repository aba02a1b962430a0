"""Cross-modal retrieval: images for a text, and texts for an image."""

import dataclasses
import functools
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssl_jax.data.images import decode
from ssl_jax.data.pairs import Encode, captions_of
from ssl_jax.data.pipeline import BadExample
from ssl_jax.data.sources import load_source
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.cross_modal import embed_texts, hit_chance, in_batches
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics.classification import check_finite
from ssl_jax.errors import UserError
from ssl_jax.reports.contact_sheet import described, ranked
from ssl_jax.reports.panels import save_panels, write
from ssl_jax.reports.records import Record, over_examples

BLOCK = 2**26  # similarities held at a time


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
    """Recall at k and the median rank over the test split, in both directions, with chance as baseline.

    Yields "R@1" ... and "median_rank" under "text_to_image" and "image_to_text", and the baseline "chance" of each. A rank
    is 1 + the number of candidates with a strictly higher score + half of the others with an equal one. Recalls are
    expected values over random tie-breaking. With captions="all" an image's best caption counts (the protocol of Flickr30k
    and COCO); "first": only one caption per image is used.
    """

    ks: tuple = (1, 5, 10)
    captions: str = "first"
    panels: int = 10  # captions whose best images the report shows
    batch_size: int = 256

    def __post_init__(self):
        super().__post_init__()
        if not self.ks or any(not isinstance(k, int) or k < 1 for k in self.ks):
            raise UserError(f"ks={self.ks}: must be positive whole numbers")
        if self.captions not in ("first", "all"):
            raise UserError(f'captions={self.captions!r}: must be "first" or "all"')

    @property
    def representations(self) -> tuple[str, ...]:
        return ("image_embedding", "text_embedding") if self.captions == "first" else ("image_embedding",)

    @property
    def names(self) -> tuple[str, ...]:
        return ("*/R@*", "*/median_rank")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        images, texts, owner, index = self.vectors(encoder, data.test)
        for record in recalls(images, texts, owner, tuple(dict.fromkeys(self.ks))):
            yield record.of(headline=record.metric == f"R@{self.ks[0]}")
        yield from chance(len(images), owner, tuple(dict.fromkeys(self.ks)))
        if self.panels and data.workdir is not None and jax.process_index() == 0:
            self.save(images, texts, owner, index, data)

    def vectors(self, encoder: Encoder, test) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return image vectors [N, dim], text vectors [M, dim], the image i32[M] that each text belongs to, and the indices
        i32[N] of the images in the data set."""
        found = encoder.extract(test, self.representations, self.batch_size)
        images, index = found["image_embedding"], found["index"]
        if self.captions == "first":
            return images, found["text_embedding"], np.arange(len(images), dtype=np.int32), index
        texts = [_captions(test.source, int(i)) for i in index]
        owner = np.repeat(np.arange(len(index), dtype=np.int32), [len(own) for own in texts])
        vectors = embed_texts(encoder, test.info, [text for own in texts for text in own], self.batch_size)
        return images, vectors, owner, index

    def save(self, images, texts, owner, index, data: EvaluationData) -> None:
        """Write the panels "retrieved" (evenly spaced captions, each with its own image and the five best images) and
        "described" (their images, each with its own caption and the five best captions)."""
        test = data.test
        chosen = np.linspace(0, len(texts) - 1, min(self.panels, len(texts))).astype(int)
        scores = texts[chosen] @ images.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        needed = np.unique(np.concatenate([best.ravel(), owner[chosen]]))
        pixels = np.stack([test.example(int(i), None)["image"] for i in index[needed]]).astype(np.float32) / 255
        words = lambda i: (_captions(test.source, int(index[owner[i]])) or ("",))[int(np.sum(owner[:i] == owner[i]))]
        own = np.searchsorted(needed, owner[chosen])
        panel = ranked([words(i) for i in chosen], pixels, scores[:, needed], top=5, own=own)
        scores = images[owner[chosen]] @ texts.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        theirs = [np.flatnonzero(owner == image) for image in owner[chosen]]
        shown = np.unique(np.concatenate([best.ravel(), *theirs]))
        theirs = [np.searchsorted(shown, of).tolist() for of in theirs]
        back = described(pixels[own], [words(i) for i in shown], scores[:, shown], top=5, own=theirs)
        save_panels({"retrieved": panel, "described": back}, pathlib.Path(data.workdir) / "panels")


def _captions(source, index: int) -> tuple[str, ...]:
    return captions_of(source[index] if source.captions is None else {"captions": source.captions(index)})


# Ranks ----------------------------------------------------------------------------------------------------------------


def recalls(
    images: Float[np.ndarray, "images dim"],
    texts: Float[np.ndarray, "texts dim"],
    owner: Int[np.ndarray, "texts"],
    ks: tuple,
) -> list[Record]:
    """Return recalls and median ranks in both directions; text j belongs to image owner[j]. Queries are ranked in blocks.

    Raises UserError for non-finite vectors.
    """
    check_finite(images, "image embeddings"), check_finite(texts, "text embeddings")
    found = []
    counts = np.bincount(owner, minlength=len(images))
    own_texts = np.full((len(images), max(1, counts.max(initial=0))), -1, np.int32)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each text among its image's
    order = np.argsort(owner, kind="stable")
    own_texts[owner[order], place] = order
    with_text = np.flatnonzero(counts)
    ways = {
        "text_to_image": (texts, images, owner[:, None]),
        "image_to_text": (images[with_text], texts, own_texts[with_text]),
    }
    for way, (queries, candidates, own) in ways.items():
        higher, tied, correct = _counts(queries, candidates, own.astype(np.int32))
        for k in ks:
            found.append(over_examples(f"R@{k}", hit_chance(higher, tied, correct, k), setting=way))
        median = float(np.median(1 + higher + tied / 2))
        found.append(Record("median_rank", median, setting=way, n=len(queries), lower_is_better=True))
    return found


def _counts(queries: np.ndarray, candidates: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (higher, tied, correct) per query as in `hit_chance`; own i32[queries, n]: its correct candidates, -1: none."""
    rows = max(1, min(len(queries), BLOCK // len(candidates)))
    candidates, parts = jnp.asarray(candidates), []
    for start in range(0, len(queries), rows):
        index = np.minimum(np.arange(start, start + rows), len(queries) - 1)
        counts = _block(jnp.asarray(queries[index]), candidates, jnp.asarray(own[index]))
        parts.append([np.asarray(c)[: len(queries) - start] for c in counts])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@jax.jit
def _block(
    queries: Float[Array, "q dim"], candidates: Float[Array, "c dim"], own: Int[Array, "q n"]
) -> tuple[Int[Array, "q"], Int[Array, "q"], Int[Array, "q"]]:
    scores = jnp.matmul(queries, candidates.T, precision="highest")
    mine = jnp.where(own >= 0, jnp.take_along_axis(scores, jnp.maximum(own, 0), axis=1), -jnp.inf)
    best = jnp.max(mine, axis=1, keepdims=True)
    correct = jnp.sum(mine == best, axis=1)
    return jnp.sum(scores > best, axis=1), jnp.sum(scores == best, axis=1) - correct, correct


def chance(images: int, owner: Int[np.ndarray, "texts"], ks: tuple) -> list[Record]:
    """Return the recalls of a random order: k / images, and 1 - C(texts - own, k) / C(texts, k) for an image's own texts."""
    found, texts = [], len(owner)
    own = np.bincount(owner, minlength=images)
    own = own[own > 0]
    for k in ks:
        miss = np.ones(len(own))
        for place in range(min(k, texts)):
            miss *= np.clip(texts - own - place, 0, None) / (texts - place)
        found.append(Record(f"R@{k}", min(1.0, k / images), "chance", "text_to_image"))
        found.append(Record(f"R@{k}", float(np.mean(1 - miss)), "chance", "image_to_text"))
    of_own = float(np.median((texts + 1) / (own + 1)))  # the expected rank of the first own one
    for way, rank in (("text_to_image", (images + 1) / 2), ("image_to_text", of_own)):
        found.append(Record("median_rank", rank, "chance", way, lower_is_better=True))
    return found


# From the shell -------------------------------------------------------------------------------------------------------


def retrieve(
    task, params, info, *, text: str | None = None, images: str | None = None, image: str | None = None,
    texts: str | None = None, top: int = 12, to: str | os.PathLike | None = None, batch_size: int = 64,
) -> list[tuple[str, float]]:  # fmt: skip
    """Rank the images (a source's URI) by similarity to `text` and write a contact sheet to `to`, or rank the captions in the
    file `texts` (one per line) for the file `image`. Return (image or caption, cosine similarity), the best first.
    """
    if getattr(task, "name", None) != "image_text":
        raise UserError("retrieve: the run trained no image and text encoder; it needs one of task.name='image_text'")
    if (
        (text is None) == (image is None)
        or (text is not None) != (images is not None)
        or (image is not None) != (texts is not None)
    ):
        raise UserError("retrieve: give --text=... with --images=URI, or --image=FILE with --texts=FILE")
    if top < 1:
        raise UserError(f"--top={top}: must be at least 1")
    features = jax.jit(task.features)
    encode = Encode(info.tokenizer, info.shapes["tokens"].shape[0])
    if text is not None:
        if not text.strip():
            raise UserError("--text is empty")
        query = in_batches(features, params, {"tokens": encode.batch([text])[0]}, "text_embedding", 1)[0]
        return _nearest_images(functools.partial(in_batches, features, params), query, text, info, images, top, to, batch_size)
    path = pathlib.Path(texts).expanduser()
    if not path.is_file():
        raise UserError(f"--texts={texts}: there is no such file")
    captions = [line.strip() for line in path.read_bytes().decode("utf-8", "replace").splitlines() if line.strip()]
    if not captions:
        raise UserError(f"--texts={texts}: holds no caption; expected one a line")
    file = pathlib.Path(image).expanduser()
    if not file.is_file():
        raise UserError(f"--image={image}: there is no such file")
    try:
        pixels = decode.centre_crop(decode.decode(file.read_bytes(), 3), info.shapes["image"].shape[:2], 1.0)
    except decode.Unreadable as error:
        raise UserError(f"--image={image} {error}") from None
    query = in_batches(features, params, {"image": _normalised(np.asarray(pixels)[None], info)}, "image_embedding", 1)[0]
    vectors = in_batches(features, params, {"tokens": encode.batch(captions)[0]}, "text_embedding", batch_size)
    scores = vectors @ query
    return [(captions[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top]]


def _nearest_images(embed, query, text, info, uri, top, to, batch_size) -> list[tuple[str, float]]:
    """Return the `top` images of a source; only the best are kept in memory."""
    source = load_source(uri)
    size = tuple(info.shapes["image"].shape[:2])
    best: list[tuple[float, int, np.ndarray]] = []
    unreadable = 0
    for start in range(0, len(source), batch_size):
        index, pixels = [], []
        for i in range(start, min(start + batch_size, len(source))):
            try:
                pixels.append(decode.evaluation_image(source[i], size, 3, 1.0))
                index.append(i)
            except (decode.Unreadable, BadExample):
                unreadable += 1
        if not index:
            continue
        filled = np.stack(pixels + [pixels[-1]] * (batch_size - len(pixels)))
        scores = embed({"image": _normalised(filled, info)}, "image_embedding", batch_size)[: len(index)] @ query
        best += [(float(s), -i, p) for s, i, p in zip(scores, index, pixels, strict=True)]
        best = sorted(best, key=lambda item: item[:2], reverse=True)[:top]
    if not best:
        raise UserError(f"{uri}: not one of its {len(source):,} images can be read")
    if to is not None:
        path = pathlib.Path(to)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, contact_sheet(text, [p for _, _, p in best], [s for s, _, _ in best]))
    named = [(source.describe(-i), score) for score, i, _ in best]
    return named if not unreadable else [*named, (f"{unreadable} of {len(source):,} images could not be read", math.nan)]


def _normalised(images: np.ndarray, info) -> np.ndarray:
    """Normalise u8 images to f32 as in training."""
    return ((images.astype(np.float32) / 255 - np.float32(info.mean or 0)) / np.float32(info.std or 1)).astype(np.float32)


def contact_sheet(text: str, images: list[np.ndarray], scores: list[float], columns: int = 6) -> bytes:
    """Return a PNG with rows of images u8[h, w, 3], the text above them and each image's score below it."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    scale = max(1, -(-128 // min(images[0].shape[:2])))
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (max(columns * (width + 8) + 8, 320), 40 + rows * (height + 28)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    draw.text(
        (8, 10), text if font.getlength(text) < sheet.width - 16 else text[: sheet.width // 9] + "…", fill="black", font=font
    )
    for i, (image, score) in enumerate(zip(images, scores, strict=True)):
        left, above = 8 + i % columns * (width + 8), 40 + i // columns * (height + 28)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, above))
        draw.text((left, above + height + 4), f"{score:.3f}", fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
