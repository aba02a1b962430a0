"""Text with targets: sentences (or pairs) with labels, and parallel text. Everything is tokenised once into fixed shapes."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.config import read
from ssl_jax.data.existing import existing, with_class_counts
from ssl_jax.data.labels import UNKNOWN, multi_hot, vocabulary
from ssl_jax.data.pipeline import SAMPLING, Dataset, balanced_subset, subset
from ssl_jax.data.sources import MISSING
from ssl_jax.data.sources.text_columns import UNIT, Column, Table, read_table
from ssl_jax.data.splits import held_out
from ssl_jax.data.text import tokenizer_files, vocabularies
from ssl_jax.data.text.encoding import encode_sentences
from ssl_jax.data.text.lines import text_batch
from ssl_jax.data.text.tokenizers import Tokenizer, TokenizerSettings
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

PLACEMENTS = ("auto", "host", "device")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns hold what: names of the header (or keys), or numbers from 0 on where there is no header."""

    text: str | int = "text"
    pair: str | int | None = None  # a second sentence
    label: str | int = "label"

    def named(self) -> dict[str, Column]:
        return {name: column for name, column in vars(self).items() if column is not None}


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """What all kinds of text with targets share in `config.data`."""

    train: str
    test: str
    batch_size: int = 32
    tokenizer: TokenizerSettings = dataclasses.field(default_factory=TokenizerSettings)
    placement: str = "auto"  # "auto": on the device
    workers: int = 0  # the text lies tokenised in memory: nothing is left for workers to do
    on_bad_example: str = "error"  # or "skip"

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: must be at least 1")
        if self.placement not in PLACEMENTS:
            raise UserError(f"placement={self.placement!r}: must be one of {', '.join(PLACEMENTS)}")
        if self.on_bad_example not in ("error", "skip"):
            raise UserError(f'on_bad_example={self.on_bad_example!r}: must be "error" or "skip"')

    @property
    def skips(self) -> bool:
        """Return whether rows that cannot be read are left out and counted."""
        return self.on_bad_example == "skip"

    def uri(self, split: str) -> str:
        return self.train if split == "train" else self.test


@dataclasses.dataclass(frozen=True)
class LabelledText(TextSettings):
    """`config.data` of labelled sentences and pairs."""

    test: str | None = None  # without one, `held_out` of the training split
    columns: Columns = dataclasses.field(default_factory=Columns)
    test_columns: Columns | None = None  # where the test file names them otherwise
    header: bool | None = None  # default: there is one where columns are asked for by name
    max_length: int = 128  # tokens, special ones included; longer texts are cut and counted
    label_separator: str | None = None  # where texts have several classes each: what is between them in a cell
    classes: tuple = ()  # their order; default: the training split's labels, sorted
    unknown_classes: str = "error"  # test examples of a class that training does not have; or "skip": left out and counted
    sampling: str = "uniform"  # of training: "class_balanced" draws every class equally often
    fraction: float | None = None  # train on a class-balanced part of the labels
    fraction_seed: int = 0
    held_out: float | None = None  # test on so much of the training split, and train on the rest; 0.1 where there is no test

    def __post_init__(self):
        super().__post_init__()
        if self.test is None and self.held_out is None:
            object.__setattr__(self, "held_out", 0.1)
        if self.max_length < 4:
            raise UserError(f"max_length={self.max_length}: must be at least 4")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"fraction={self.fraction}: must lie in (0, 1]")
        if self.sampling not in SAMPLING:
            raise UserError(f"sampling={self.sampling!r}: must be one of {', '.join(SAMPLING)}")
        if self.unknown_classes not in ("error", "skip"):
            raise UserError(f'unknown_classes={self.unknown_classes!r}: must be "error" or "skip"')
        if self.label_separator == "":
            raise UserError('label_separator="": must be at least one character, such as ","')
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must lie in (0, 1)")

    def of_training(self, split: str) -> bool:
        """Return whether a split's rows come from the training file."""
        return split == "train" or self.held_out is not None

    def part(self, split: str, dataset: Dataset) -> Dataset:
        """Return what a split has of the training file: a fraction of it, less what is held out (by each row's text)."""
        labels = dataset.labels()
        rows = np.arange(dataset.size)
        if self.fraction is not None:
            rows = balanced_subset(labels, fraction=self.fraction, seed=self.fraction_seed)
        if self.held_out is not None:
            keys = list(dataset.source.keys())
            held = held_out([keys[row] for row in rows], self.held_out, labels[rows], seed=self.fraction_seed)
            if not held.any():
                raise UserError(
                    f"{self.train}: data.held_out={self.held_out:g} holds out none of its {len(rows):,} texts: each class has "
                    "only one text (equal texts count once); name a data.test, or check data.columns.label"
                )
            rows = rows[~held if split == "train" else held]
        return dataset if len(rows) == dataset.size else subset(dataset, rows)

    def table(self, split: str) -> Table:
        columns = self.columns if self.of_training(split) else self.test_columns or self.columns
        uri = self.train if self.of_training(split) else self.test
        remedy = "set data.columns" if self.of_training(split) else "set data.test_columns, the columns of data.test"
        return read_table(
            uri, columns.named(), header=self.header, skip_bad=self.skips, label_separator=self.label_separator, remedy=remedy
        )

    def names(self, table: Table) -> list[tuple[str, ...]]:
        """Return the class names of each row; () where its label is empty."""
        split = (lambda label: tuple(label.split(UNIT))) if self.label_separator is not None else (lambda label: (label,))
        return [split(label) if label else () for label in table.columns["label"]]


def labelled_text(section: Any, *, split: str, train: bool, task_section=None, workdir=None) -> Dataset:
    """The Dataset of labelled sentences: {"tokens": i32[T], "segments": i32[T], "token_types": i32[T], "label": i32[]}.

    "segments" is 1 on text and 0 on padding, "token_types" 1 on the second sentence of a pair. With `label_separator` "label"
    is i32[classes] of 0 and 1. `info.extra["truncated"]` counts the texts that were cut.
    """
    settings = read(LabelledText, section, "data")
    table = settings.table(split)
    classes = _classes(settings)
    labels = _labels(table, classes, settings)
    tokenizer = tokenizer_of(settings.tokenizer, workdir, lambda: _texts(settings.table("train"), ("text", "pair")))
    texts = table.columns["text"]
    tokens, token_types, length, truncated = encode_sentences(tokenizer, texts, table.columns.get("pair"), settings.max_length)
    arrays = {"tokens": tokens, "length": length, "label": labels}
    if "pair" in table.columns:
        arrays["token_types"] = token_types
    info = DataInfo(
        shapes={name: jax.ShapeDtypeStruct((settings.max_length,), jnp.int32) for name in ("tokens", "segments", "token_types")}
        | {"label": jax.ShapeDtypeStruct(labels.shape[1:], jnp.int32)},
        classes=classes,
        tokenizer=tokenizer,
        extra={"truncated": truncated},
    )
    dataset = existing(in_memory(info, arrays, table, text_batch, settings, labels), scan=False)
    dataset = settings.part(split, dataset) if settings.of_training(split) else dataset
    dataset = dataclasses.replace(dataset, class_balanced=train and settings.sampling == "class_balanced")
    return with_class_counts(dataset, task_section) if train else dataset


def _classes(settings: LabelledText) -> tuple[str, ...]:
    if settings.classes:
        return tuple(str(c) for c in settings.classes)
    found = vocabulary(name for own in settings.names(settings.table("train")) for name in own)
    if len(found) < 2:
        only = f"one label only ({found[0]!r})" if found else "no label"
        raise UserError(f"{settings.train}: holds {only}; at least two classes are needed")
    if len(found) > 1000:
        raise UserError(f"{settings.train}: holds {len(found):,} different labels; is data.columns.label the right column?")
    return found


def _labels(table: Table, classes: tuple[str, ...], settings: LabelledText) -> np.ndarray:
    """Return i32[rows], MISSING for an empty label; with `label_separator` i32[rows, classes] of 0 and 1.

    A class that training does not have raises UserError; or it is UNKNOWN, and of several classes left out.
    """
    number, names = {name: i for i, name in enumerate(classes)}, settings.names(table)
    if settings.unknown_classes == "error":
        for i, own in enumerate(names):
            for name in own:
                if name not in number:
                    have = f"{settings.train} has {', '.join(classes[:10])}"
                    raise UserError(
                        f"{table.describe(i)}: label {name!r} does not occur in training ({have}); correct it, "
                        'or set data.unknown_classes="skip" to leave such examples out'
                    )
    if settings.label_separator is not None:
        return multi_hot([[name for name in own if name in number] for own in names], classes)[0].astype(np.int32)
    return np.array([number.get(own[0], UNKNOWN) if own else MISSING for own in names], np.int32)


# Parallel text ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ParallelColumns:
    source: str | int = "source"
    target: str | int = "target"


@dataclasses.dataclass(frozen=True)
class ParallelText(TextSettings):
    """`config.data` of sentences and their translations; one vocabulary serves both languages."""

    columns: ParallelColumns = dataclasses.field(default_factory=ParallelColumns)
    header: bool | None = None
    max_source_length: int = 64
    max_target_length: int = 64

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 2")

    def table(self, split: str) -> Table:
        return read_table(self.uri(split), vars(self.columns), header=self.header, skip_bad=self.skips)


def parallel_text(section: Any, *, split: str, train: bool, task_section=None, workdir=None) -> Dataset:
    """The Dataset of parallel text: {"source": i32[S], "source_segments": i32[S], "target": i32[T + 1], "target_segments"}.

    The source ends with the end token, the target begins with the beginning token and ends with the end token; segments
    are 0 on padding. The text itself is `dataset.source[i]["target"]`.
    """
    settings = read(ParallelText, section, "data")
    table = settings.table(split)
    tokenizer = tokenizer_of(settings.tokenizer, workdir, lambda: _texts(settings.table("train"), ("source", "target")))
    first, last = sentence_ends(tokenizer)
    arrays, truncated = {}, 0
    for side, limit in (("source", settings.max_source_length), ("target", settings.max_target_length)):
        begin = [first] if side == "target" else []
        rows = [[*begin, *ids, last] for ids in tokenizer.encode_batch(table.columns[side])]
        width = limit + len(begin)
        truncated += sum(len(row) > width for row in rows)
        tokens = np.full((len(rows), width), tokenizer.pad_id or 0, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row[:width]
        arrays[side], arrays[f"{side}_length"] = tokens, np.array([min(len(row), width) for row in rows], np.int32)
    shapes = {name: jax.ShapeDtypeStruct((settings.max_source_length,), jnp.int32) for name in ("source", "source_segments")}
    shapes |= {
        name: jax.ShapeDtypeStruct((settings.max_target_length + 1,), jnp.int32) for name in ("target", "target_segments")
    }
    info = DataInfo(shapes=shapes, tokenizer=tokenizer, extra={"truncated": truncated})
    return in_memory(info, arrays, table, _parallel, settings)


def sentence_ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens that begin and end a generated sentence: [BOS] and [EOS], else [CLS] and [SEP]."""
    first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.cls_id
    last = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.sep_id
    if first is None or last is None:
        raise UserError(
            "data.tokenizer: the vocabulary has no token that begins and none that ends a sentence; add [BOS] and [EOS] to "
            "data.tokenizer.special_tokens"
        )
    return first, last


def _parallel(raw: Mapping[str, Any], keys) -> dict[str, Any]:
    batch = {name: value for name, value in raw.items() if not name.endswith("_length")}
    for side in ("source", "target"):
        tokens = raw[side].astype(jnp.int32)
        batch[side] = tokens
        batch[f"{side}_segments"] = (jnp.arange(tokens.shape[1])[None] < raw[f"{side}_length"][:, None]).astype(jnp.int32)
    return batch


# Shared -------------------------------------------------------------------------------------------------------------


def in_memory(info: DataInfo, arrays: dict, source: Any, on_device, settings: TextSettings, labels=None) -> Dataset:
    """A Dataset whose examples all lie in `arrays`."""
    return Dataset(
        info=info,
        size=len(source),
        example=lambda index, generator: {name: array[index] for name, array in arrays.items()},
        source=source,
        resident=arrays,
        on_device=on_device,
        arrays=arrays,
        label_array=labels,
        placement="device" if settings.placement == "auto" else settings.placement,
        workers=settings.workers,
        skip_bad=settings.skips,
        left_out={"that cannot be read": getattr(source, "skipped", 0)},
    )


def _texts(table: Table, columns: Sequence[str]):
    return (text for name in columns if name in table.columns for text in table.columns[name])


def tokenizer_of(settings: TokenizerSettings, workdir: str | None, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer of a run: read from its file; or trained once on the training split and kept in the work directory."""
    if not settings.trained:
        return tokenizer_files.from_settings(settings)
    if workdir is not None and (pathlib.Path(workdir) / "tokenizer" / "tokenizer.json").is_file():
        return tokenizer_files.load(pathlib.Path(workdir) / "tokenizer")
    tokenizer = vocabularies.trained(settings, vocabularies.cache_key(settings, texts()), texts)
    if workdir is not None:
        tokenizer.save(pathlib.Path(workdir) / "tokenizer")
    return tokenizer
