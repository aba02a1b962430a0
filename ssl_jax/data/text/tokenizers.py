"""Tokenizers: text <-> token ids, and the special tokens that a model's tokenizer adds to a text."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.data.sources.files import without_surrogates
from ssl_jax.errors import UserError

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = {  # role -> its names in published vocabularies, for tokenizers whose files do not define it
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<|endoftext|>", "<s>"),
    "eos": ("[EOS]", "<|end_of_text|>", "<|endoftext|>", "<eos>", "</s>"),
}
NAMES = ("characters", "bytes", "bpe", "wordpiece", "gpt2", "bert", "clip", "file")
_TRAINED = ("characters", "bpe", "wordpiece")
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """`config.data.tokenizer`.

    "characters", "bpe" and "wordpiece" are trained on the training corpus and saved in the work directory; "gpt2" (a folder
    with encoder.json + vocab.bpe, or vocab.json + merges.txt), "bert" (vocab.txt), "clip" (bpe_simple_vocab_16e6.txt.gz) and
    "file" (any tokenizer.json, or a model directory) are read from `path`.
    """

    name: str = "characters"
    path: str | None = None
    size: int = 8192  # of a trained vocabulary, including special tokens
    lowercase: bool = True  # WordPiece and BERT: convert to lower case and strip accents
    special_tokens: tuple[str, ...] | None = None  # default: BERT's five for "wordpiece", <|endoftext|> for "bpe", else none
    min_frequency: int = 2  # least occurrences of a merged pair in training

    def __post_init__(self):
        if self.name not in NAMES:
            raise UserError(f"name={self.name!r}: must be one of {', '.join(NAMES)}")
        if self.name in ("gpt2", "bert", "clip", "file") and self.path is None:
            raise UserError(f"path is missing: name={self.name!r} reads a published vocabulary from a file")
        if not 2 <= self.size < 2**31:
            raise UserError(f"size={self.size}: must be at least 2")
        for token in self.special_tokens or ():
            if not isinstance(token, str) or not token:
                raise UserError(f"special_tokens={self.special_tokens!r}: must be non-empty texts")

    @property
    def trained(self) -> bool:
        return self.name in _TRAINED

    def special(self) -> tuple[str, ...]:
        if self.special_tokens is not None:
            return self.special_tokens
        return {"wordpiece": BERT_SPECIAL, "bpe": ("<|endoftext|>",)}.get(self.name, ())


@dataclasses.dataclass(frozen=True)
class Template:
    """Special tokens around one text or two: (token id, type) of each, in order, and ("a", type), ("b", type) for the texts."""

    parts: tuple[tuple[int | str, int], ...]

    @property
    def special(self) -> int:
        """Return the number of special tokens."""
        return sum(not isinstance(token, str) for token, _ in self.parts)

    def fill(self, a: Sequence[int], b: Sequence[int] = ()) -> tuple[list[int], list[int]]:
        """Return token ids and the type (0: first text, 1: second) of each."""
        ids: list[int] = []
        types: list[int] = []
        for token, kind in self.parts:
            piece = {"a": a, "b": b}[token] if isinstance(token, str) else (token,)
            ids.extend(piece)
            types.extend([kind] * len(piece))
        return ids, types

    def between(self, first: str | None, last: str | None) -> tuple[int, ...]:
        """Return the special tokens between two texts; None: the beginning or the end."""
        names = [token for token, _ in self.parts]
        start = 0 if first is None else names.index(first) + 1
        stop = len(names) if last is None else names.index(last)
        return tuple(token for token in names[start:stop] if not isinstance(token, str))


class Tokenizer:
    """Text <-> token ids. Subclasses implement `_encode`, `decode`, `size`, `token` and `_spec`.

    `files` holds the files of a published tokenizer that define its special tokens (SETTINGS_FILES), by name. They determine
    the tokens that begin, end and pad a text; without them, the usual names (ROLES) do.
    """

    size: int  # 1 + the largest id
    path: str | None = None  # the path of a published vocabulary
    files: Mapping[str, str] = {}

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        return {self.token(i): i for i in range(self.size)}

    # Special tokens ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _told(self) -> dict[str, Any]:
        """Return the merged contents of the files; tokenizer_config.json takes precedence over special_tokens_map.json."""
        contents = {name: json.loads(text) for name, text in self.files.items()}
        found = contents.get("special_tokens_map.json", {}) | contents.get("tokenizer_config.json", {})
        return found | {"generation": contents.get("generation_config.json", {})}

    def _generation_ids(self, key: str) -> tuple[int, ...]:
        """Return the ids under a key of generation_config.json, a number or a list."""
        value = self._told["generation"].get(key)
        values = value if isinstance(value, list) else [value]
        return tuple(i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0)

    def _role(self, role: str) -> int | None:
        key = f"{role}_token"
        if key in self._told:
            value = self._told[key]
            name = value.get("content") if isinstance(value, dict) else value
            if name is None or name in self.vocabulary:
                return self.vocabulary.get(name)
        ids = self._generation_ids(f"{key}_id") if role in ("bos", "eos") else ()
        if ids:
            return ids[0]
        return next((self.vocabulary[name] for name in ROLES[role] if name in self.vocabulary), None)

    pad_id = functools.cached_property(lambda self: self._role("pad"))
    mask_id = functools.cached_property(lambda self: self._role("mask"))
    cls_id = functools.cached_property(lambda self: self._role("cls"))
    sep_id = functools.cached_property(lambda self: self._role("sep"))
    unk_id = functools.cached_property(lambda self: self._role("unk"))
    bos_id = functools.cached_property(lambda self: self._role("bos"))
    eos_id = functools.cached_property(lambda self: self._role("eos"))

    @property
    def separator_id(self) -> int | None:
        """Return the token between two documents of a token array: end of text, else [SEP], else None."""
        return self.eos_id if self.eos_id is not None else self.sep_id

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the tokens that end a generated text: generation_config.json's, else the end-of-text token."""
        own = () if self.eos_id is None else (self.eos_id,)
        return self._generation_ids("eos_token_id") or own

    @functools.cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """Return the tokens that the tokenizer adds before a text for a causal model: LLaMA's <s>, none for GPT-2."""
        wanted, bos = self._told.get("add_bos_token"), self.bos_id
        if isinstance(wanted, bool):
            return (bos,) if wanted and bos is not None else ()
        template = self.template(pair=False)
        before, after = template.between(None, "a"), template.between("a", None)
        return before if not after or bos in before else ()

    @functools.cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """Return the tokens that begin a text: `prefix_ids`, else the begin-of-text token, else the separator."""
        first = self.bos_id if self.bos_id is not None else self.separator_id
        return self.prefix_ids or (() if first is None else (first,))

    @functools.cached_property
    def document_prefix(self) -> tuple[int, ...]:
        """Return the tokens that begin each document of a causal model's corpus, after the separator: the begin-of-text token,
        if the vocabulary has one that differs from the end-of-text token."""
        return () if self.bos_id in (None, self.separator_id) else (self.bos_id,)

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Return the ids of special tokens, which represent no text."""
        names = {name for names in ROLES.values() for name in names}
        return tuple(sorted(i for name, i in self.vocabulary.items() if name in names))

    def require(self, role: str) -> int:
        """Return the id of `role` ("mask", "cls", ...); raise UserError, with advice, if there is none."""
        value = self._role(role)
        if value is None:
            name, where = ROLES[role][0], "data.tokenizer.special_tokens" if self.path is None else "the file"
            raise UserError(
                f"data.tokenizer{'' if self.path is None else f'.path={self.path}'}: the vocabulary ({self.size} tokens) lacks "
                f"{name}; add it to {where} or choose a tokenizer that has it"
            )
        return value

    # Encoding ------------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """Return the token ids of each text, without special tokens."""
        raise NotImplementedError

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return token ids; `special` adds the special tokens of the model's published tokenizer ([CLS] ... [SEP])."""
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Return the token ids of each text; lone surrogates are read as U+FFFD."""
        ids = list(self._encode([without_surrogates(text) for text in texts]))
        return [self.template(pair=False).fill(row)[0] for row in ids] if special else ids

    def encode_pieces(self, texts: Sequence[str], continues: Sequence[bool]) -> list[list[int]]:
        """Return token ids of pieces of longer texts; `continues[i]`: text i continues a piece that ended with a word."""
        return self.encode_batch(texts)

    def encode_pair(self, a: str, b: str) -> tuple[list[int], list[int]]:
        """Return two texts joined as by the model's tokenizer ([CLS] a [SEP] b [SEP]): token ids, and types 0 and 1."""
        return self.template(pair=True).fill(*self.encode_batch([a, b]))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return token ids and the half-open range of characters of `text` of each."""
        raise NotImplementedError

    def template(self, pair: bool) -> Template:
        """Return the special tokens around one text, or around and between two."""
        if self.cls_id is not None and self.sep_id is not None:
            single = ((self.cls_id, 0), ("a", 0), (self.sep_id, 0))
            return Template((*single, ("b", 1), (self.sep_id, 1)) if pair else single)
        middle = () if self.eos_id is None else ((self.eos_id, 0),)
        return Template((("a", 0), *middle, ("b", 1)) if pair else (("a", 0),))

    def decode(self, ids: Iterable[Any]) -> str:
        raise NotImplementedError

    def token(self, index: int) -> str:
        """Return a token as spelled in the vocabulary ("##ing", "Ġthe"); "" for an unused id."""
        raise NotImplementedError

    @functools.cached_property
    def continues(self) -> np.ndarray:
        """Return bool[size]: True for a token that continues the preceding word (whole-word masking)."""
        raise NotImplementedError

    # Storage -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def key(self) -> str:
        """Return a hash of everything that determines the ids; equal tokenizers have equal keys."""
        return hashlib.sha256(self._spec().encode()).hexdigest()[:16]

    def _spec(self) -> str:
        """Return the content of tokenizer.json."""
        raise NotImplementedError

    @staticmethod
    def load(path: str | pathlib.Path) -> "Tokenizer":
        """Load a saved or published tokenizer; `path` is its file or its folder."""
        from ssl_jax.data.text.tokenizer_files import load

        return load(path)

    def save(self, folder: str | pathlib.Path) -> None:
        """Write `folder`/tokenizer.json and the files that define the special tokens; `load` reads them."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {**self.files, "tokenizer.json": self._spec()}.items():
            temporary = folder / f"{name}.{os.getpid()}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.rename(folder / name)


class CharacterTokenizer(Tokenizer):
    """One id per character, in the order of code points, followed by special tokens."""

    def __init__(self, characters: str, special: Sequence[str] = ()):
        self.characters, self.special = characters, tuple(special)
        self.size = len(characters) + len(self.special)
        points = np.array([ord(c) for c in characters] or [0])
        self._id = np.full(points.max() + 1, -1, np.int32)
        if characters:
            self._id[points] = np.arange(len(characters))

    def _encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        for text in texts:
            points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            known = points < len(self._id)
            ids = np.where(known, self._id[np.where(known, points, 0)], -1)
            if (ids < 0).any():
                if self.unk_id is None:
                    place = int(np.argmax(ids < 0))
                    raise UserError(
                        f"character {text[place]!r} (number {place} of this piece of text) is not among the tokenizer's "
                        f"{len(self.characters)}; replace it, or train the tokenizer (with task.init that run's) with [UNK] "
                        "in data.tokenizer.special_tokens"
                    )
                ids = np.where(ids < 0, self.unk_id, ids)
            yield ids.tolist()

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: Iterable[Any]) -> str:
        return "".join(self.token(int(i)) for i in ids)

    def token(self, index: int) -> str:
        n = len(self.characters)
        return self.characters[index] if index < n else self.special[index - n]

    @functools.cached_property
    def continues(self) -> np.ndarray:
        return np.array([inside_word(c) or c in "'’" for c in self.characters] + [False] * len(self.special))

    def _spec(self) -> str:
        return json.dumps({"characters": self.characters, "special": self.special})


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8, followed by special tokens."""

    def __init__(self, special: Sequence[str] = ()):
        self.special, self.size = tuple(special), 256 + len(special)

    def _encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        return (list(text.encode()) for text in texts)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i, c in enumerate(without_surrogates(text)) for _ in c.encode()]

    def decode(self, ids: Iterable[Any]) -> str:
        data = b"".join(bytes([i]) if i < 256 else self.special[i - 256].encode() for i in map(int, ids))
        return data.decode(errors="replace")

    def token(self, index: int) -> str:
        return self.special[index - 256] if index >= 256 else f"<0x{index:02X}>"

    @functools.cached_property
    def continues(self) -> np.ndarray:
        inside = [byte_inside_word(bytes([i])) or i == ord("'") for i in range(256)]
        return np.array(inside + [False] * len(self.special))

    def _spec(self) -> str:
        return json.dumps({"bytes": 256, "special": self.special})


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library: BPE, WordPiece, or any other tokenizer.json."""

    def __init__(self, inner, files: Mapping[str, str] | None = None, text: str | None = None):
        inner.no_truncation()
        inner.no_padding()
        self.inner, self.files, self._text = inner, dict(files or {}), text  # the text of tokenizer.json
        self.size = 1 + max(self.vocabulary.values(), default=0)  # a vocabulary may skip ids

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        return self.inner.get_vocab()

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(i for i, t in self.inner.get_added_tokens_decoder().items() if t.special))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exception
            if is_stand_in(self):
                raise UserError(
                    'text: this model directory has no tokenizer, and texts must be token ids such as "101 7592 102"; put its '
                    "tokenizer.json beside config.json"
                ) from None
            raise UserError(f"text: the tokenizer cannot encode it ({error})") from None

    @functools.cached_property
    def _starts_with_space(self) -> bool:
        """Return whether a space (LLaMA's "▁") is added before every text, even one that begins with a space."""
        a, again = self._encode(["a", " a"])
        return self._encode(["a a"])[0] != a + again

    def encode_pieces(self, texts: Sequence[str], continues: Sequence[bool]) -> list[list[int]]:
        if not any(continues) or not self._starts_with_space:
            return self.encode_batch(texts)
        lead = self.encode("a")  # takes the added space, so that the following text is tokenized as inside a text
        continues = [more and text[:1].isspace() for text, more in zip(texts, continues, strict=True)]
        rows = self.encode_batch(["a" + text if more else text for text, more in zip(texts, continues, strict=True)])
        return [row[len(lead) :] if more else row for row, more in zip(rows, continues, strict=True)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.inner.encode(without_surrogates(text), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def template(self, pair: bool) -> Template:
        return self._templates[pair] or super().template(pair)

    @functools.cached_property
    def _templates(self) -> tuple[Template | None, Template | None]:
        """Return the post-processor's special tokens around one text and around two; None if it adds none."""
        if self.inner.post_processor is None:
            return None, None
        encode = lambda text: self.inner.encode(text, add_special_tokens=False)
        probes = ("a", "0", *(self.decode([i]) for i in range(min(self.size, 1000))))
        probe = next((text for text in probes if encode(text).ids), None)
        if probe is None:
            return None, None
        return self._template(encode(probe), None), self._template(encode(probe), encode(probe))

    def _template(self, a: Any, b: Any) -> Template | None:
        if self.inner.num_special_tokens_to_add(b is not None) == 0:
            return None
        count = len(a.ids)
        whole = self.inner.post_process(a, b, add_special_tokens=True)
        parts: list[tuple[int | str, int]] = []
        for token, kind, special in zip(whole.ids, whole.type_ids, whole.special_tokens_mask, strict=True):
            part = (token, kind) if special else ("a" if count > 0 else "b", kind)
            count -= not special
            if special or part not in parts:
                parts.append(part)
        return Template(tuple(parts))

    def decode(self, ids: Iterable[Any]) -> str:
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, index: int) -> str:
        return self.inner.id_to_token(index) or ""

    @functools.cached_property
    def continues(self) -> np.ndarray:
        tokens, special = [self.token(i) for i in range(self.size)], set(self.special_ids)
        inside = word_marks(tokens, type(self.inner.model).__name__)
        return np.array([i not in special and bool(token) and inside(token) for i, token in enumerate(tokens)])

    def _spec(self) -> str:
        return self._text or self.inner.to_str()


def is_stand_in(tokenizer: Any) -> bool:
    """Return whether this is `interop.files.numbers`, whose texts are token ids, for a model without a tokenizer."""
    named = sum(tokenizer.token(i) == str(i) for i in range(tokenizer.size))
    return named >= tokenizer.size - 6


# Where words begin ----------------------------------------------------------------------------------------------------


def inside_word(character: str) -> bool:
    """Return whether a character can continue a word: letters, digits and marks of scripts that put spaces between words."""
    letter = character.isalnum() or unicodedata.category(character).startswith("M")
    return letter and not any(low <= ord(character) <= high for low, high in _UNSPACED)


_UNSPACED = (  # Thai and Lao, Burmese, Khmer, kana, Chinese characters
    (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip


def byte_inside_word(data: bytes) -> bool:
    """Return `inside_word` of the first character of UTF-8 bytes, which may begin or end within a character."""
    first = data[0]
    if 0x80 <= first < 0xC0:  # the rest of a character
        return True
    length = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    character = data[:length]
    if len(character) < length:  # decide by the lowest character with these bytes; for four bytes, by an emoji
        rest = {0xE0: b"\xa0\x80", 0xF0: b"\x9f\x98\x80"}.get(first, b"\x80\x80\x80")
        character += rest[len(character) - 1 : length - 1]
    text = character.decode("utf-8", "replace")
    return len(text) == 1 and inside_word(text)


def word_marks(tokens: Sequence[str], model: str) -> Any:
    """Return a function from a token to whether it continues the preceding word, by this vocabulary's marks."""
    if model == "WordLevel":
        return lambda token: False
    if any(token.startswith("##") for token in tokens):
        return lambda token: token.startswith("##")
    if any(token.startswith("▁") for token in tokens):  # SentencePiece; <0xE4> is a byte of a character that has no token
        return lambda token: byte_inside_word(bytes([int(token[3:5], 16)])) if _is_byte(token) else inside_word(token[0])
    if any("Ġ" in token for token in tokens):
        letters = {letter: byte for byte, letter in byte_letters().items()}
        as_bytes = lambda token: bytes(letters.get(letter, 0x20) for letter in token)
        return lambda token: byte_inside_word(as_bytes(token))
    if any(token[:1].isspace() for token in tokens) and not any(token.endswith("</w>") for token in tokens):
        return lambda token: inside_word(token[0])
    raise UserError("data.tokenizer: whole-word masking needs a vocabulary that marks where words begin (##, ▁ or Ġ)")


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def byte_letters() -> dict[int, str]:
    """Return GPT-2's printable character for each byte, in the order of its and CLIP's vocabularies: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
