"""The output of `ssl-jax data inspect URI`: the content of a source, its unreadable parts, and an example."""

import concurrent.futures
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssl_jax.data.images import decode
from ssl_jax.data.labels import multi_hot, vocabulary
from ssl_jax.data.pairs import captions_of
from ssl_jax.data.sources import MISSING, TEXT_ONLY, BadExample, Source, load_source
from ssl_jax.data.sources.tables import header_hint
from ssl_jax.data.sources.text_columns import UNIT, read_table
from ssl_jax.errors import UserError

SAMPLE = 1000  # number of evenly spaced examples that are read


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of reading one example."""

    size: tuple[int, int] | None = None  # width and height of the image
    length: int | None = None  # number of characters of the text, or of the first caption
    problem: str | None = None  # why it cannot be read


def inspect(
    uri: str, index: int | None = None, *, dir: str | None = None, columns: Mapping[str, str | None] | None = None,
    label_separator: str | None = None,
) -> str:  # fmt: skip
    """Return a source's content as text: kind, counts, classes, sizes, unreadable parts; or with `index`, one example.

    Up to SAMPLE evenly spaced examples are decoded. Raise UserError for a source that cannot be opened.
    """
    source = _open(uri, dir, columns, label_separator)
    if index is not None:
        if not 0 <= index < len(source):
            raise UserError(f"{uri}: has no example {index}; its {len(source):,} examples are 0 to {len(source) - 1}")
        return "\n".join([uri, *_example(source, index)])
    sample = np.unique(np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).astype(int)).tolist()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda i: look_at(source, i), sample))
    good = [i for i, of in zip(sample, found, strict=True) if of.problem is None]
    facts = {"kind": kind_of(source, good[0]) if good else "unknown: no example can be read"}
    facts["examples"] = f"{len(source):,}"
    facts |= _classes(source) if source.labels() is not None else _text_classes(source, columns, label_separator)
    facts |= _sizes([of.size for of in found if of.size is not None], len(sample))
    lengths = [of.length for of in found if of.length is not None]
    if lengths:
        median, most, longest = np.percentile(lengths, [50, 95, 100]).astype(int)
        without = f", {len(good) - len(lengths):,} examples without any" if len(lengths) < len(good) else ""
        facts["text"] = f"{median:,} characters in the median, {most:,} at 95 %, {longest:,} at most{without}"
    problems = [of.problem for of in found if of.problem is not None]
    if problems:
        facts["bad"] = f"{len(problems):,} of {_of(len(sample))}; the first: {problems[0]}"
    lines = [uri, *(f"  {name:9} {value}" for name, value in facts.items())]
    lines += [f"  note      {line}" for line in source.remarks()]
    if source.unread:
        lines.append(
            f"  note      columns that are not read: {', '.join(source.unread)} (--config.data.columns.label=NAME names one)"
        )
    return "\n".join([*lines, *(_example(source, good[0]) if good else ())])


def _open(uri: str, dir: str | None, columns: Mapping[str, str | None] | None, label_separator: str | None) -> Source:
    if isinstance(uri, str) and uri.partition(":")[0] in TEXT_ONLY:
        return read_table(uri, {name: name for name in _ROLES[uri.partition(":")[0]]})
    return load_source(uri, dir=dir, columns=columns, label_separator=label_separator)


_ROLES = {"parallel": ("source", "target"), "trec": ("text", "label")}


def look_at(source: Source, index: int) -> Found:
    """Read one example completely, as training would; return its sizes or why it cannot be read."""
    try:
        example = source[index]
        image, size = example.get("image"), None
        if image is not None:
            image = decode.decode(image, 3) if isinstance(image, bytes) else decode.from_array(np.asarray(image), 3)
            size = image.size
        captions = captions_of(example)
    except decode.Unreadable as error:
        return Found(problem=f"{source.describe(index)} {error}")
    except BadExample as error:
        return Found(problem=str(error).partition("; fix it")[0])
    return Found(size, len(captions[0]) if captions else None)


def kind_of(source: Source, index: int) -> str:
    """Return the kind of data of an example in words."""
    example = source[index]
    labelled = ", labelled" if source.labels() is not None else ", without labels"
    if "image" in example:
        return ("images with captions" if captions_of(example) else "images") + labelled
    if "text" in example:
        return "text"
    if set(example) == {"source", "target"}:
        return "parallel text"
    unnamed = header_hint(list(example)) or "name those to read by data.columns, such as --config.data.columns.text=NAME"
    return f"columns {', '.join(example)}; {unnamed}"


def _classes(source: Source) -> dict[str, str]:
    labels = source.labels()
    if labels is None or not source.classes:
        return {}
    shown = ", ".join(source.classes[:10]) + (" ..." if len(source.classes) > 10 else "")
    facts = {"classes": f"{len(source.classes)}: {shown}"}
    if labels.ndim == 2:
        of_class, of_example = labels.sum(axis=0), labels.sum(axis=1)
        return facts | {
            "labels": f"{of_class.min():,} to {of_class.max():,} examples per class, {of_example.min()} to {of_example.max()}"
            f" classes per example, {of_example.mean():.1f} on average"
        }
    counts = np.bincount(labels[labels != MISSING], minlength=len(source.classes))
    facts["labels"] = f"{counts.min():,} to {counts.max():,} examples per class"
    if (labels == MISSING).any():
        facts["labels"] += f", {np.sum(labels == MISSING):,} examples without one"
    return facts


def _text_classes(source: Source, columns: Mapping[str, str | None] | None, separator: str | None) -> dict[str, str]:
    """Return classes and labels of a table of texts, read as training reads them; {} if there are none."""
    column = (columns or {}).get("label") or "label"
    if "image" in (example := source[0]) or column not in example:
        return {}
    try:
        cells = read_table(source.name, {"label": column}, label_separator=separator).columns["label"]
    except UserError as error:
        return {"labels": f"cannot be read: {error}"}
    own = [tuple(cell.split(UNIT)) if cell else () for cell in cells]
    return _classes(Labels(source.name, own, separator is not None))


class Labels(Source):
    """The labels of a table of texts, by name."""

    def __init__(self, name: str, labels: list[tuple[str, ...]], several: bool):
        self.name = name
        self.classes = vocabulary(label for own in labels for label in own)
        number = {label: i for i, label in enumerate(self.classes)}
        self._labels = np.array([number[own[0]] if own else MISSING for own in labels], np.int32)
        if several:
            self._labels, self.classes = multi_hot(labels)

    def labels(self) -> np.ndarray:
        return self._labels


def _sizes(sizes: list[tuple[int, int]], sample: int) -> dict[str, str]:
    if not sizes:
        return {}
    smallest, largest = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    text = lambda size: f"{size[0]} x {size[1]}"
    shown = text(smallest) if len(set(sizes)) == 1 else f"from {text(smallest)} to {text(largest)}"
    return {"sizes": f"{shown} pixels ({_of(len(sizes))})"}


def _of(count: int) -> str:
    return f"{count:,} examples read"


def _example(source: Source, index: int) -> list[str]:
    """Return lines about one example: its name and its stored fields."""
    try:
        fields = source[index]
    except BadExample as error:
        return [f"  {error}"]
    if source.classes and np.ndim(fields.get("label")) == 1:
        fields["label"] = ", ".join(source.classes[i] for i in np.flatnonzero(fields["label"])) or "none"
    elif source.classes and fields.get("label", MISSING) != MISSING:
        fields["label"] = f"{fields['label']} ({source.classes[fields['label']]})"
    return [f"  {source.describe(index)}", *(f"    {name:9} {_value(name, value)}" for name, value in fields.items())]


def _value(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        return _encoded(value)
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype}{list(value.shape)} from {value.min()} to {value.max()}" if value.size else "nothing"
    if isinstance(value, str) and not name == "label":
        text = value if len(value) <= 200 else f"{value[:200]}... ({len(value):,} characters)"
        return repr(text)
    return str(value)


def _encoded(data: bytes) -> str:
    """Return an encoded image's format, size and mode, from its header."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
    except Exception:
        return f"{len(data):,} bytes that are no image"
    return f"{image.format}, {image.size[0]} x {image.size[1]}, {image.mode}, {len(data):,} bytes"
