"""Tokenizers: characters, bytes, BPE and WordPiece trained on a corpus, and published vocabularies read from files."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ssl_jax.errors import UserError

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = {  # role -> the names it goes by in published vocabularies
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("[BOS]", "<|startoftext|>", "<|endoftext|>", "<s>"),
    "eos": ("[EOS]", "<|endoftext|>", "</s>"),
}
NAMES = ("characters", "bytes", "bpe", "wordpiece", "gpt2", "bert", "clip", "file")
_TRAINED = ("characters", "bpe", "wordpiece")


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """`config.data.tokenizer`.

    "characters", "bpe" and "wordpiece" are trained on the training corpus and kept in the work directory; "gpt2" (a folder with
    encoder.json + vocab.bpe, or vocab.json + merges.txt), "bert" (vocab.txt), "clip" (bpe_simple_vocab_16e6.txt.gz) and
    "file" (any tokenizer.json, or a folder that holds one) are read from `path`.
    """

    name: str = "characters"
    path: str | None = None
    size: int = 8192  # of a trained vocabulary, special tokens included
    lowercase: bool = True  # WordPiece and BERT: lower case, accents stripped
    special_tokens: tuple[str, ...] | None = None  # default: BERT's five for "wordpiece", <|endoftext|> for "bpe", else none
    min_frequency: int = 2

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


class Tokenizer:
    """Text <-> token ids. Subclasses supply `_encode`, `decode`, `size`, `token` and the vocabulary."""

    size: int
    path: str | None = None  # of a published vocabulary

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        return {self.token(i): i for i in range(self.size)}

    def _role(self, role: str) -> int | None:
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
        """What stands between two documents of a token array: the end-of-text token, else [SEP], else None."""
        return self.eos_id if self.eos_id is not None else self.sep_id

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text."""
        names = {name for names in ROLES.values() for name in names}
        return tuple(sorted(i for name, i in self.vocabulary.items() if name in names))

    def require(self, role: str) -> int:
        """The id of `role` ("mask", "cls" ...), or a UserError that says how to get it."""
        value = self._role(role)
        if value is None:
            name, where = ROLES[role][0], "data.tokenizer.special_tokens" if self.path is None else "the file"
            raise UserError(
                f"data.tokenizer{'' if self.path is None else f'.path={self.path}'}: the vocabulary ({self.size} tokens) lacks "
                f"{name}; add it to {where} or choose a tokenizer that has it"
            )
        return value

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids; `special` adds what the model's published tokenizer adds ([CLS] ... [SEP])."""
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        ids = [list(row) for row in self._encode(texts)]
        return [self._wrap(row) for row in ids] if special else ids

    def encode_pair(self, a: str, b: str) -> tuple[list[int], list[int]]:
        """[CLS] a [SEP] b [SEP] as the vocabulary's own model expects it: token ids and segment ids."""
        first, second = self.encode_batch([a, b])
        if self.cls_id is None or self.sep_id is None:
            middle = [] if self.eos_id is None else [self.eos_id]
            return first + middle + second, [0] * (len(first) + len(middle)) + [1] * len(second)
        return (
            [self.cls_id, *first, self.sep_id, *second, self.sep_id],
            [0] * (len(first) + 2) + [1] * (len(second) + 1),
        )

    def _wrap(self, ids: list[int]) -> list[int]:
        if self.cls_id is None or self.sep_id is None:
            return ids
        return [self.cls_id, *ids, self.sep_id]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the half-open range of characters of `text` that each stands for."""
        raise NotImplementedError

    def decode(self, ids: Iterable[Any]) -> str:
        raise NotImplementedError

    def token(self, index: int) -> str:
        """A token as the vocabulary spells it ("##ing", "Ġthe")."""
        raise NotImplementedError

    @functools.cached_property
    def continues(self) -> np.ndarray:
        """bool[size]: True for a token that continues the word before it (whole-word masking)."""
        tokens = [self.token(i) for i in range(self.size)]
        if any(t.startswith("##") for t in tokens):
            return np.array([t.startswith("##") for t in tokens])
        if any(t.endswith("</w>") for t in tokens):
            raise UserError("data.tokenizer: whole-word masking needs tokens that say where a word begins")
        special, blank = set(self.special_ids), "ĠĊĉč"  # byte-level BPE's stand-ins for white space
        inside = lambda t: bool(t) and t[0] not in blank and (t[0].isalnum() or ord(t[0]) > 127)
        return np.array([i not in special and inside(t) for i, t in enumerate(tokens)])

    @functools.cached_property
    def key(self) -> str:
        """A hash of everything that decides the ids; equal tokenizers have equal keys."""
        return hashlib.sha256(self._spec().encode()).hexdigest()[:16]

    @staticmethod
    def load(path: str | pathlib.Path) -> "Tokenizer":
        """What `save` wrote, or any published tokenizer.json; `path` is the file or the folder that holds it."""
        return load(path)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `folder`/tokenizer.json, which `load` reads."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"tokenizer.json.{os.getpid()}.tmp"
        temporary.write_text(self._spec(), encoding="utf-8")
        temporary.rename(folder / "tokenizer.json")


class CharacterTokenizer(Tokenizer):
    """One id a character, in the order of the code points; special tokens come after them."""

    def __init__(self, characters: str, special: Sequence[str] = ()):
        self.characters, self.special = characters, tuple(special)
        self.size = len(characters) + len(self.special)
        points = np.array([ord(c) for c in characters] or [0])
        self._id = np.full(points.max() + 1, -1, np.int32)
        if characters:
            self._id[points] = np.arange(len(characters))

    def _encode(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for text in texts:
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            known = points < len(self._id)
            ids = np.where(known, self._id[np.where(known, points, 0)], -1)
            if (ids < 0).any():
                if self.unk_id is None:
                    place = int(np.argmax(ids < 0))
                    raise UserError(
                        f"character {text[place]!r} (number {place} of this piece of text) is not among the tokenizer's "
                        f"{len(self.characters)}; add [UNK] to data.tokenizer.special_tokens"
                    )
                ids = np.where(ids < 0, self.unk_id, ids)
            yield ids

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        ids = [row.tolist() for row in self._encode(texts)]
        return [self._wrap(row) for row in ids] if special else ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: Iterable[Any]) -> str:
        return "".join(self.token(int(i)) for i in ids)

    def token(self, index: int) -> str:
        n = len(self.characters)
        return self.characters[index] if index < n else self.special[index - n]

    @functools.cached_property
    def continues(self) -> np.ndarray:
        return np.array([c.isalnum() or c in "'’" for c in self.characters] + [False] * len(self.special))

    def _spec(self) -> str:
        return json.dumps({"characters": self.characters, "special": self.special})


class ByteTokenizer(Tokenizer):
    """One id a byte of UTF-8; special tokens come after the 256."""

    def __init__(self, special: Sequence[str] = ()):
        self.special, self.size = tuple(special), 256 + len(special)

    def _encode(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for text in texts:
            yield np.frombuffer(text.encode(), np.uint8)

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        ids = [row.tolist() for row in self._encode(texts)]
        return [self._wrap(row) for row in ids] if special else ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]

    def decode(self, ids: Iterable[Any]) -> str:
        data = b"".join(bytes([i]) if i < 256 else self.special[i - 256].encode() for i in map(int, ids))
        return data.decode(errors="replace")

    def token(self, index: int) -> str:
        return self.special[index - 256] if index >= 256 else f"<0x{index:02X}>"

    @functools.cached_property
    def continues(self) -> np.ndarray:
        word = lambda i: i >= 128 or chr(i).isalnum() or chr(i) == "'"
        return np.array([i < 256 and word(i) for i in range(self.size)])

    def _spec(self) -> str:
        return json.dumps({"bytes": 256, "special": self.special})


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library: BPE, WordPiece, whatever a tokenizer.json describes."""

    def __init__(self, inner):
        inner.no_truncation()
        inner.no_padding()
        self.inner, self.size = inner, inner.get_vocab_size()

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        return self.inner.get_vocab()

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(i for i, t in self.inner.get_added_tokens_decoder().items() if t.special))

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        return [e.ids for e in self.inner.encode_batch_fast(list(texts), add_special_tokens=special)]

    def encode_pair(self, a: str, b: str) -> tuple[list[int], list[int]]:
        if self.inner.post_processor is None or self.inner.num_special_tokens_to_add(True) == 0:
            return super().encode_pair(a, b)
        encoding = self.inner.encode(a, b)
        return encoding.ids, encoding.type_ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[Any]) -> str:
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, index: int) -> str:
        return self.inner.id_to_token(index)

    def _spec(self) -> str:
        return self.inner.to_str()


# Making one ---------------------------------------------------------------------------------------------------------


def byte_level_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Sequence[str] = ()) -> FastTokenizer:
    """GPT-2's tokenizer (Radford et al. 2019, section 2.2) over a given vocabulary; `special` tokens are looked up in it."""
    import tokenizers as t

    inner = t.Tokenizer(t.models.BPE(vocab=vocabulary, merges=merges))
    _byte_level(inner)
    inner.add_special_tokens([s for s in special if s in vocabulary])
    return FastTokenizer(inner)


def _byte_level(inner) -> None:
    import tokenizers as t

    inner.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = t.decoders.ByteLevel()


def wordpiece(vocabulary: dict[str, int], lowercase: bool = True) -> FastTokenizer:
    """BERT's tokenizer (Devlin et al. 2019, section 3) over a given vocabulary."""
    import tokenizers as t

    inner = t.Tokenizer(t.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    _bert(inner, lowercase)
    inner.add_special_tokens([s for s in BERT_SPECIAL if s in vocabulary])
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        pair = (("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"]))
        inner.post_processor = t.processors.BertProcessing(pair[1], pair[0])
    return FastTokenizer(inner)


def _bert(inner, lowercase: bool) -> None:
    import tokenizers as t

    inner.normalizer = t.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    inner.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    inner.decoder = t.decoders.WordPiece(prefix="##")


def clip_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> FastTokenizer:
    """CLIP's tokenizer: lower-cased BPE with "</w>" at the end of a word (Radford et al. 2021, section 2.4)."""
    import tokenizers as t

    inner = t.Tokenizer(
        t.models.BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>",
            continuing_subword_prefix="", fuse_unk=False,
        )
    )  # fmt: skip
    inner.normalizer = t.normalizers.Sequence(
        [t.normalizers.NFC(), t.normalizers.Replace(t.Regex(r"\s+"), " "), t.normalizers.Lowercase()]
    )
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    inner.pre_tokenizer = t.pre_tokenizers.Sequence(
        [
            t.pre_tokenizers.Split(t.Regex(pattern), behavior="removed", invert=True),
            t.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = t.decoders.ByteLevel()
    inner.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    ends = (("<|endoftext|>", vocabulary["<|endoftext|>"]), ("<|startoftext|>", vocabulary["<|startoftext|>"]))
    inner.post_processor = t.processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return FastTokenizer(inner)


def train(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on `texts`, an iterator over pieces of the corpus."""
    if settings.name == "characters":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return CharacterTokenizer("".join(sorted(seen)), settings.special())
    if settings.name == "bytes":
        return ByteTokenizer(settings.special())
    import tokenizers as t

    special = list(settings.special())
    common = dict(vocab_size=settings.size, min_frequency=settings.min_frequency, special_tokens=special, show_progress=False)
    if settings.name == "bpe":
        if settings.size < 256 + len(special):
            raise UserError(f"data.tokenizer.size={settings.size}: byte-level BPE needs at least {256 + len(special)}")
        inner = t.Tokenizer(t.models.BPE())
        _byte_level(inner)
        trainer = t.trainers.BpeTrainer(initial_alphabet=sorted(t.pre_tokenizers.ByteLevel.alphabet()), **common)
        inner.train_from_iterator(texts, trainer)
        return FastTokenizer(inner)
    if "[UNK]" not in special:
        raise UserError("data.tokenizer.special_tokens: WordPiece needs [UNK] among them")
    return _train_wordpiece(t, settings, texts, common)


ALPHABET = 1000  # characters of a trained WordPiece vocabulary, the most frequent ones


def _train_wordpiece(t, settings: TokenizerSettings, texts: Iterable[str], common: dict) -> FastTokenizer:
    """WordPiece as the library trains it, but the same vocabulary every time.

    Its trainer numbers "##a", "##b" ... as it comes across them in a hash table, and settles ties by these numbers. Here they
    are numbered beforehand, by frequency.
    """
    inner = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]"))
    _bert(inner, settings.lowercase)
    words: collections.Counter[str] = collections.Counter()
    for text in texts:
        words.update(inner.normalizer.normalize_str(text).split())
    letters: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:ALPHABET]
    common["special_tokens"] = [*common["special_tokens"], *alphabet, *("##" + letter for letter in alphabet)]
    if len(common["special_tokens"]) > settings.size:
        raise UserError(
            f"data.tokenizer.size={settings.size}: this text's characters alone need {len(common['special_tokens'])}"
        )
    trainer = t.trainers.WordPieceTrainer(continuing_subword_prefix="##", limit_alphabet=len(alphabet), **common)
    repeated = (" ".join([word] * count) for word, count in sorted(words.items()))
    inner.train_from_iterator(repeated, trainer)
    return wordpiece(inner.get_vocab(), settings.lowercase)


def load(path: str | pathlib.Path) -> Tokenizer:
    """What `save` wrote, or any published tokenizer.json; `path` is the file or the folder that holds it."""
    path = pathlib.Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    text = _read(file)
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: is not JSON (line {error.lineno}: {error.msg})") from None
    if isinstance(spec, dict) and "characters" in spec:
        return CharacterTokenizer(spec["characters"], spec["special"])
    if isinstance(spec, dict) and "bytes" in spec:
        return ByteTokenizer(spec["special"])
    import tokenizers as t

    try:
        return FastTokenizer(t.Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: is not a tokenizer.json ({error})") from None


def from_settings(settings: TokenizerSettings) -> Tokenizer:
    """A tokenizer that needs no training: bytes, or a published vocabulary from `settings.path`."""
    if settings.name == "bytes":
        return ByteTokenizer(settings.special())
    tokenizer = _published(settings)
    tokenizer.path = settings.path
    return tokenizer


def _published(settings: TokenizerSettings) -> Tokenizer:
    path = pathlib.Path(settings.path).expanduser()
    if settings.name == "file":
        return load(path)
    if settings.name == "gpt2":
        if not path.is_dir():
            raise UserError(f"data.tokenizer.path={settings.path}: expected a folder with encoder.json and vocab.bpe")
        names = ("encoder.json", "vocab.bpe") if (path / "encoder.json").exists() else ("vocab.json", "merges.txt")
        try:
            vocabulary = json.loads(_read(path / names[0]))
        except json.JSONDecodeError as error:
            raise UserError(f"{path / names[0]}: is not JSON (line {error.lineno}: {error.msg})") from None
        special = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", *settings.special())
        return byte_level_bpe(vocabulary, _merges(_read(path / names[1]), path / names[1]), special)
    if settings.name == "clip":
        if path.is_dir():
            path = path / "bpe_simple_vocab_16e6.txt.gz"
        return _clip(path)
    if path.is_dir():
        path = path / "vocab.txt"
    tokens = _read(path).split("\n")
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens and tokens[-1] == "" else tokens)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if "[UNK]" not in vocabulary:
        raise UserError(f"{path}: lacks [UNK]; expected BERT's vocab.txt, one token a line")
    return wordpiece(vocabulary, settings.lowercase)


def _clip(path: pathlib.Path) -> FastTokenizer:
    import gzip

    import tokenizers as t

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    merges = _merges(data.decode(), path)[: 49152 - 256 - 2]
    letters = _byte_alphabet(t)
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return clip_bpe({token: i for i, token in enumerate(tokens)}, merges)


def _byte_alphabet(t) -> list[str]:
    """The 256 printable stand-ins in the order of GPT-2's and CLIP's vocabularies: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _merges(text: str, path: pathlib.Path) -> list[tuple[str, str]]:
    lines = text.split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        if (number == 1 and (line.startswith("#") or "version" in line)) or not line.strip():
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise UserError(f"{path}: line {number}: expected two tokens, found {line[:60]!r}")
        merges.append((parts[0], parts[1]))
    return merges


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from None
