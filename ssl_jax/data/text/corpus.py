"""The kinds of data "tokens" and "sequences": windows, sequences and sentence pairs of a corpus that is tokenised once."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ssl_jax.config import read
from ssl_jax.data.pipeline import Dataset
from ssl_jax.data.sources import Source, digest
from ssl_jax.data.text import tokenizer_files
from ssl_jax.data.text.corpus_files import SEPARATORS, Documents, open_documents
from ssl_jax.data.text.document_split import split_documents
from ssl_jax.data.text.sequence_packing import document_spans, gather_spans, sentence_pairs
from ssl_jax.data.text.token_array import TokenArray, token_array
from ssl_jax.data.text.tokenizers import Tokenizer, TokenizerSettings
from ssl_jax.data.text.vocabularies import trained
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

PACKING = ("windows", "documents", "pairs")
DEVICE_BYTES = 2**28  # token arrays up to this size are placed on the device
TRAINED_ON = 2**30  # leading places (bytes) of the corpus on which a vocabulary is trained
SAMPLED = 2**24  # tokens that identify a corpus: all tokens of a smaller one


@dataclasses.dataclass(frozen=True)
class TokensSettings:
    """The config's section `data` for text without targets.

    `packing`:
    - "windows": `block` consecutive tokens, across documents.
    - "documents": next token: windows whose attention does not cross documents; masked token: each sequence from one document.
    - "pairs": masked token: two runs of sentences, the second in half of the cases from elsewhere (Devlin et al. 2019).

    Without `test`, a share `holdout` is held out: of several documents, by a hash of each document's text; of one continuous
    text, its end. Evaluation covers every token once.
    """

    train: str
    test: str | None = None
    batch_size: int = 32
    holdout: float = 0.1
    block: int = 128  # tokens of an example
    packing: str = "windows"  # "windows", "documents" or "pairs"
    stride: int | None = None  # between training windows; default: 1 (next token), the window's length (masked token)
    restart_positions: bool = False  # packing="documents": positions begin at 0 in each document
    short_sequences: float = 0.0  # share of sequences with a random shorter length (BERT: 0.1)
    duplicates: int = 1  # copies of the training sequences, each with its own static mask (BERT: 10)
    column: str | int = "text"  # the column of text in jsonl, tsv and csv
    documents: str = "file"  # of text: sources: a document is a "file", a "line" or a part between two "blank_line"s
    tokenizer: TokenizerSettings = dataclasses.field(default_factory=TokenizerSettings)
    placement: str = "auto"
    workers: int = 0
    cache: str | None = None  # folder of token arrays and trained tokenizers; default: ~/.cache/ssl_jax/tokens
    on_bad_example: str = "error"

    def __post_init__(self):
        for name, choices in (
            ("packing", PACKING), ("documents", tuple(SEPARATORS)), ("placement", ("auto", "host", "device")),
            ("on_bad_example", ("error", "skip")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        for name, least in (("batch_size", 1), ("block", 2), ("duplicates", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride={self.stride}: must be at least 1")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout={self.holdout}: must lie in [0, 1)")
        if not 0 <= self.short_sequences <= 1:
            raise UserError(f"short_sequences={self.short_sequences}: must lie in [0, 1]")


def build(section: Any, *, split: str = "train", train: bool = True, workdir: str | None = None, **_: Any) -> Dataset:
    """Return windows of the text that the config's section `data` names.

    train=True gives training examples (all windows); train=False covers every token of the split once.
    Batches: "tokens" i32[B, block + 1] and, if packed, "segments" and "positions" of the same shape; evaluation adds
    "label_weights" f32[B, block].
    """
    settings = read(TokensSettings, section, "data")
    if settings.packing == "pairs":
        raise UserError('data.packing="pairs": is for masked-token tasks only; use "windows" or "documents"')
    tokenizer = load_tokenizer(settings, workdir)
    return _windows(settings, tokenizer, *load_tokens(settings, tokenizer, split), train)


def build_sequences(section: Any, *, split: str = "train", train: bool = True, workdir: str | None = None, **_: Any) -> Dataset:
    """Return sequences with special tokens of the text that the config's section `data` names.

    train=True gives training examples (all duplicates); train=False covers every token of the split once. Batches:
    "tokens" i32[B, block] = [CLS] ... [SEP], "segments" (1 real, 0 padding), "token_types"; for pairs also "is_random" i32[B].
    """
    settings = read(TokensSettings, section, "data")
    tokenizer = load_tokenizer(settings, workdir)
    return _sequences(settings, tokenizer, *load_tokens(settings, tokenizer, split, causal=False), train)


def _open(settings: TokensSettings, uri: str) -> Documents:
    return open_documents(uri, column=settings.column, documents=settings.documents, skip_bad=settings.on_bad_example == "skip")


def load_tokens(settings: TokensSettings, tokenizer: Tokenizer, split: str, *, causal: bool = True) -> tuple[TokenArray, str]:
    """Return the token array of a split ("train" or "test") and its name in messages. For a causal model, each document begins
    with the begin-of-text token if the tokenizer has one."""
    uri = settings.test if split == "test" and settings.test else settings.train
    name, whole = uri, functools.partial(_open, settings, uri)
    source = whole()
    start, stop = 0, source.size
    if settings.test is None and settings.holdout > 0:
        test, share = split == "test", f"{100 * settings.holdout:g} %"
        part = split_documents(whole, settings.holdout, test=test)
        if part is not None:
            source, name = part, f"{uri} ({'the' if test else 'without the'} {share} of its documents that are held out)"
        else:
            middle = int(source.size * (1 - settings.holdout))
            start, stop = (middle, source.size) if test else (0, middle)
            name = f"{uri} ({'its' if test else 'without its'} last {share})"
    elif split == "test" and settings.test is None:
        raise UserError("data.test is missing, and data.holdout=0 holds out no test text; set one of the two")
    array = token_array(
        source, tokenizer, start=start, stop=stop, sentences=settings.packing == "pairs", cache=settings.cache,
        prefix=tokenizer.document_prefix if causal else (),
    )  # fmt: skip
    return array, name


def load_tokenizer(settings: TokensSettings, workdir: str | pathlib.Path | None = None) -> Tokenizer:
    """Return the tokenizer of `data.tokenizer`: read from its file, or trained on the corpus and saved in `workdir`/tokenizer.

    A started run keeps its tokenizer: raise UserError for another corpus or other settings.
    """
    wanted = settings.tokenizer
    if not wanted.trained:
        return tokenizer_files.from_settings(wanted)
    sources = [_open(settings, settings.train)]
    if wanted.name == "characters" and settings.test is not None:
        sources.append(_open(settings, settings.test))  # characters that occur only in the test text need ids too
    folder = None if workdir is None else pathlib.Path(workdir) / "tokenizer"
    parts = [dataclasses.asdict(wanted), *(source.fingerprint() for source in sources)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if folder is not None and (folder / "trained_on.json").exists() and (folder / "tokenizer.json").exists():
        if json.loads((folder / "trained_on.json").read_text())["key"] == key:
            return tokenizer_files.load(folder)
        if (folder.parent / "config.json").exists():
            raise UserError(
                f"{folder}: this tokenizer was trained on another corpus or with other settings than data.tokenizer now has; "
                'use a new --workdir, or data.tokenizer=dict(name="file", path=...)'
            )
    pieces = lambda: (piece.text for source in sources for piece in source.pieces(0, min(source.size, TRAINED_ON)))
    tokenizer = trained(wanted, key, pieces, settings.cache)
    if folder is not None:
        tokenizer.save(folder)
        (folder / "trained_on.json").write_text(json.dumps({"key": key, **dataclasses.asdict(wanted)}))
    return tokenizer


class Tokens(Source):
    """The source of a token Dataset: the text of its examples, and their names in errors."""

    def __init__(self, name: str, tokenizer: Tokenizer, size: int, example: Any, tokens: np.ndarray):
        self.name, self.tokenizer, self.size, self.example, self.tokens = name, tokenizer, size, example, tokens

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.tokenizer.decode(self.example(index, None)["tokens"])}

    def describe(self, index: int) -> str:
        return f"{self.name}: window {index:,}"

    def fingerprint(self) -> str:
        """Return a digest of the tokens, or of SAMPLED tokens in evenly spaced runs, and of their number."""
        runs = np.linspace(0, max(len(self.tokens) - 4096, 0), min(-(-len(self.tokens) // 4096), SAMPLED // 4096)).astype(int)
        return digest([str(len(self.tokens)).encode(), *(np.uint32(self.tokens[at : at + 4096]).tobytes() for at in runs)])


def _dataset(settings, tokenizer, array, name, *, size, example, shapes, resident, gather, on_device=None) -> Dataset:
    extra = {
        "tokens": len(array.tokens), "documents": len(array.documents), "characters": array.characters, "words": array.words,
        "bytes": array.bytes, "tokens_per_example": settings.block, "skipped": array.skipped, "largest_token": array.largest,
    }  # fmt: skip
    fits = sum(a.nbytes for a in resident.values()) <= DEVICE_BYTES
    device = settings.placement == "device" or (settings.placement == "auto" and fits)
    options = {} if on_device is None else {"on_device": on_device}
    return Dataset(
        info=DataInfo(shapes=shapes, tokenizer=tokenizer, extra=extra),
        size=size,
        example=example,
        source=Tokens(name, tokenizer, size, example, array.tokens),
        resident={key: np.asarray(value) for key, value in resident.items()} if device else {},
        gather=gather,
        placement="device" if device else "host",
        workers=settings.workers,
        skip_bad=settings.on_bad_example == "skip",
        left_out={"that cannot be read": array.skipped},
        **options,
    )


# Next token -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Windows:
    """Example i: `length` tokens from i * stride on; the last window ends at the array's end."""

    tokens: np.ndarray
    length: int
    stride: int
    weights: bool  # label weights, which are 0 for labels of the previous window

    @property
    def size(self) -> int:
        return -(-(len(self.tokens) - self.length) // self.stride) + 1

    def __call__(self, index: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        start = min(index * self.stride, len(self.tokens) - self.length)
        out = {"tokens": self.tokens[start : start + self.length].astype(np.int32)}
        if self.weights:
            fresh = start + np.arange(1, self.length) > index * self.stride
            out["label_weights"] = fresh.astype(np.float32)
        return out

    def gather(self, resident: Mapping[str, Any], index: Any) -> dict[str, Array]:
        tokens, index = jnp.asarray(resident["tokens"]), jnp.asarray(index)
        start = jnp.minimum(index * self.stride, len(self.tokens) - self.length)
        cut = lambda at: jax.lax.dynamic_slice(tokens, (at,), (self.length,))
        out = {"tokens": jax.vmap(cut)(start).astype(jnp.int32)}
        if self.weights:
            fresh = start[:, None] + jnp.arange(1, self.length) > (index * self.stride)[:, None]
            out["label_weights"] = fresh.astype(jnp.float32)
        return out


def _windows(settings: TokensSettings, tokenizer: Tokenizer, array: TokenArray, name: str, train: bool) -> Dataset:
    length = settings.block + 1
    total = len(array.tokens)
    if total < length:
        raise UserError(
            f"{name}: holds {total:,} tokens, but data.block={settings.block} needs at least {length:,}; lower it or add text"
        )
    stride = settings.stride or (1 if total < 2**31 else settings.block)
    windows = Windows(array.tokens, length, stride if train else settings.block, weights=not train)
    if windows.size >= 2**31:
        raise UserError(f"data.stride={stride} makes {windows.size:,} windows; raise it until they are fewer than 2^31")
    shapes = {"tokens": jax.ShapeDtypeStruct((length,), jnp.int32)}
    on_device = None
    if settings.packing == "documents":
        if tokenizer.separator_id is None:
            raise UserError(
                'data.packing="documents": the tokenizer has no token that ends a document; add "<|endoftext|>" to '
                "data.tokenizer.special_tokens"
            )
        on_device = functools.partial(_segmented, separator=tokenizer.separator_id, restart=settings.restart_positions)
        names = ("segments", "positions") if settings.restart_positions else ("segments",)
        shapes |= {key: jax.ShapeDtypeStruct((length,), jnp.int32) for key in names}
    return _dataset(
        settings, tokenizer, array, name, size=windows.size, example=windows, shapes=shapes,
        resident={"tokens": array.tokens}, gather=windows.gather, on_device=on_device,
    )  # fmt: skip


def _segmented(raw: Mapping[str, Array], keys: Any, *, separator: int, restart: bool) -> dict[str, Array]:
    """Return a batch with document numbers from 1 on as segments; the separator belongs to the document before it."""
    tokens = raw["tokens"]
    ends = jnp.pad(tokens[:, :-1] == separator, ((0, 0), (1, 0)))
    out = {**raw, "segments": 1 + jnp.cumsum(ends, axis=1, dtype=jnp.int32)}
    if restart:
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        out["positions"] = places - jax.lax.cummax(jnp.where(ends, places, 0), axis=1)
    return out


# Masked token ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spans:
    """Example i: [CLS] A [SEP], or [CLS] A [SEP] B [SEP], padded to `length`; row i of `table` locates A and B."""

    tokens: np.ndarray
    table: np.ndarray  # i64[size, 5]: start and length of A, start and length of B, whether B is random
    length: int
    ids: tuple[int, int, int]  # [CLS], [SEP], [PAD]
    pairs: bool
    full: bool  # no sequence is padded

    def __call__(self, index: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        return self._made(np, self.tokens, np.asarray(self.table[index : index + 1]), squeeze=True)

    def gather(self, resident: Mapping[str, Any], index: Any) -> dict[str, Array]:
        return self._made(jnp, jnp.asarray(resident["tokens"]), jnp.asarray(resident["table"])[index], squeeze=False)

    def _made(self, xp, tokens, rows, squeeze):
        out = gather_spans(xp, tokens, rows, self.length, self.ids)
        if not self.pairs:
            del out["is_random"], out["token_types"]
        if self.full:
            del out["segments"]
        return {name: value[0] for name, value in out.items()} if squeeze else out


def _sequences(settings: TokensSettings, tokenizer: Tokenizer, array: TokenArray, name: str, train: bool) -> Dataset:
    ids = (tokenizer.require("cls"), tokenizer.require("sep"), tokenizer.require("pad"))
    tokenizer.require("mask")
    if len(array.tokens) < 2:
        raise UserError(f"{name}: has only {len(array.tokens)} tokens; a masked-token task needs more text")
    pairs, content = settings.packing == "pairs", settings.block - (3 if settings.packing == "pairs" else 2)
    if content < 2:
        raise UserError(f"data.block={settings.block}: has no space for text besides [CLS] and [SEP]; raise it")
    generator = np.random.default_rng([0, int(train)])
    duplicates, short = (settings.duplicates, settings.short_sequences) if train else (1, 0.0)
    if pairs:
        table = sentence_pairs(array, content, generator, duplicates=duplicates, short=settings.short_sequences)
    elif settings.packing == "documents":
        table = document_spans(array, tokenizer.separator_id, content, generator, duplicates=duplicates, short=short)
    else:
        if len(array.tokens) < content:
            raise UserError(
                f"{name}: holds {len(array.tokens):,} tokens, fewer than data.block={settings.block}; lower it or add text"
            )
        stride = (settings.stride or content) if train else content
        starts = np.minimum(np.arange(0, len(array.tokens) - content + stride, stride), len(array.tokens) - content)
        table = np.zeros((len(starts), 5), np.int64)
        table[:, 0], table[:, 1] = starts, content
        table = np.tile(table, (duplicates, 1))
    if len(table) == 0:
        raise UserError(f"{name}: yields no sequence; data.packing={settings.packing!r} needs documents of several sentences")
    full = settings.packing == "windows"
    spans = Spans(array.tokens, table.astype(np.int64), settings.block, ids, pairs, full)
    names = ["tokens"] + ([] if full else ["segments"]) + (["token_types"] if pairs else [])
    shapes = {key: jax.ShapeDtypeStruct((settings.block,), jnp.int32) for key in names}
    if pairs:
        shapes["is_random"] = jax.ShapeDtypeStruct((), jnp.int32)
    if settings.placement != "host" and len(array.tokens) >= 2**31:
        settings = dataclasses.replace(settings, placement="host")
    return _dataset(
        settings, tokenizer, array, name, size=len(table), example=spans, shapes=shapes,
        resident={"tokens": array.tokens, "table": table.astype(np.int32 if len(array.tokens) < 2**31 else np.int64)},
        gather=spans.gather,
    )  # fmt: skip
