"""Read published and saved tokenizers from files: tokenizer.json, or vocab.txt, vocab.json and merges.txt."""

import gzip
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.data.text.tokenizers import (
    BERT_SPECIAL,
    SETTINGS_FILES,
    ByteTokenizer,
    CharacterTokenizer,
    FastTokenizer,
    Tokenizer,
    TokenizerSettings,
    byte_letters,
)
from ssl_jax.errors import UserError

GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
GPT2_SPECIAL = ("<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>")  # GPT-2's, RoBERTa's


def from_settings(settings: TokenizerSettings) -> Tokenizer:
    """Return a tokenizer that needs no training: bytes, or a published vocabulary from `settings.path`."""
    if settings.name == "bytes":
        return ByteTokenizer(settings.special())
    path = pathlib.Path(settings.path).expanduser()
    if settings.name == "file":
        tokenizer = load(path)
    elif settings.name == "gpt2":
        if not path.is_dir():
            raise UserError(f"data.tokenizer.path={settings.path}: expected a folder with encoder.json and vocab.bpe")
        tokenizer = read_byte_level(path, special=settings.special())
    elif settings.name == "clip":
        tokenizer = read_clip(path / "bpe_simple_vocab_16e6.txt.gz" if path.is_dir() else path)
    else:
        tokenizer = wordpiece(read_vocab_txt(path / "vocab.txt" if path.is_dir() else path), settings.lowercase)
    tokenizer.path = settings.path
    return tokenizer


def load(path: str | pathlib.Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, ours or a published one, or of a folder with one, with a vocab.txt (BERT), or
    with a vocab.json and a merges.txt (GPT-2, RoBERTa, CLIP).

    Other files in the folder determine the special tokens (`Tokenizer.files`).
    """
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        return _without_tokenizer_json(folder)
    text = read(file)
    spec = parse(text, file)
    if "characters" in spec:
        return CharacterTokenizer(spec["characters"], spec["special"])
    if "bytes" in spec:
        return ByteTokenizer(spec["special"])
    import tokenizers as t

    try:
        inner = t.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: is not a tokenizer.json ({error})") from None
    return FastTokenizer(inner, settings_files(folder), text)


def holds_tokenizer(folder: pathlib.Path) -> bool:
    """Return whether `load` finds files to read."""
    names = (("tokenizer.json",), ("vocab.txt",), *GPT2_FILES)
    return any(all((folder / name).is_file() for name in group) for group in names)


def settings_files(folder: pathlib.Path) -> dict[str, str]:
    """Return the folder's files that define the special tokens, by name.

    A missing generation_config.json is derived from config.json, as in transformers.
    """
    files = {name: read(folder / name) for name in SETTINGS_FILES if (folder / name).is_file()}
    for name, text in files.items():
        parse(text, folder / name)
    if "generation_config.json" not in files and (folder / "config.json").is_file():
        config = parse(read(folder / "config.json"), folder / "config.json")
        files |= generation_config(config)
    return files


def generation_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {"generation_config.json": text} with the special tokens of a config.json; {} if it names none."""
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
    return {"generation_config.json": json.dumps(ids)} if ids else {}


def _without_tokenizer_json(folder: pathlib.Path) -> Tokenizer:
    files = settings_files(folder)
    told = parse(files.get("tokenizer_config.json", "{}"), folder / "tokenizer_config.json")
    if (folder / "vocab.txt").is_file():
        strip = told.get("strip_accents")
        tokenizer = wordpiece(
            read_vocab_txt(folder / "vocab.txt"), bool(told.get("do_lower_case", True)),
            strip_accents=strip if isinstance(strip, bool) else None, chinese=bool(told.get("tokenize_chinese_chars", True)),
        )  # fmt: skip
    elif any(all((folder / name).is_file() for name in names) for names in GPT2_FILES):
        tokenizer = read_byte_level(folder, prefix_space=bool(told.get("add_prefix_space", False)))
    else:
        model = next((name for name in ("tokenizer.model", "spiece.model") if (folder / name).is_file()), None)
        problem = "there is no such file"
        if model is not None:
            problem = (
                f"there is no such file, and {model} (SentencePiece) is not supported; make it with transformers: "
                f'AutoTokenizer.from_pretrained("{folder}").save_pretrained("{folder}")'
            )
        raise UserError(f"{folder / 'tokenizer.json'}: {problem}")
    tokenizer.files = files
    return tokenizer


# BERT -----------------------------------------------------------------------------------------------------------------


def read_vocab_txt(path: pathlib.Path) -> dict[str, int]:
    """Return token -> its line, from 0 on; the last one of a repeated token, as in BERT's own code."""
    tokens = read(path).split("\n")
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens[-1] == "" else tokens)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if "[UNK]" not in vocabulary:
        raise UserError(f"{path}: lacks [UNK]; expected BERT's vocab.txt, one token per line")
    return vocabulary


def wordpiece(
    vocabulary: dict[str, int], lowercase: bool = True, *, strip_accents: bool | None = None, chinese: bool = True
) -> FastTokenizer:
    """Return BERT's tokenizer (Devlin et al. 2019, section 3) with a given vocabulary."""
    import tokenizers as t

    inner = t.Tokenizer(t.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    bert_steps(inner, lowercase, strip_accents, chinese)
    inner.add_special_tokens([s for s in BERT_SPECIAL if s in vocabulary])
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        pair = (("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"]))
        inner.post_processor = t.processors.BertProcessing(pair[1], pair[0])
    return FastTokenizer(inner)


def bert_steps(inner, lowercase: bool, strip_accents: bool | None = None, chinese: bool = True) -> None:
    """Add BERT's normaliser, pre-tokenizer and decoder."""
    import tokenizers as t

    inner.normalizer = t.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    inner.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    inner.decoder = t.decoders.WordPiece(prefix="##")


# GPT-2 and RoBERTa ----------------------------------------------------------------------------------------------------


def read_byte_level(folder: pathlib.Path, *, special: Sequence[str] = (), prefix_space: bool = False) -> FastTokenizer:
    """Return the tokenizer of encoder.json + vocab.bpe (GPT-2) or vocab.json + merges.txt (GPT-2, RoBERTa, CLIP)."""
    names = next((names for names in GPT2_FILES if (folder / names[0]).is_file()), GPT2_FILES[1])
    vocabulary = parse(read(folder / names[0]), folder / names[0])
    if not all(isinstance(i, int) for i in vocabulary.values()):
        raise UserError(f"{folder / names[0]}: expected ids by token")
    merges = parse_merges(read(folder / names[1]), folder / names[1])
    if any(token.endswith("</w>") for token in vocabulary):
        return clip_bpe(vocabulary, merges)
    return byte_level_bpe(vocabulary, merges, (*GPT2_SPECIAL, *special), prefix_space=prefix_space)


def byte_level_bpe(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Sequence[str] = (), *, prefix_space: bool = False
) -> FastTokenizer:
    """Return GPT-2's tokenizer (Radford et al. 2019, section 2.2) with a given vocabulary, which contains `special` tokens.

    With <s>, </s> and <mask> among these it is RoBERTa's.
    """
    import tokenizers as t

    inner = t.Tokenizer(t.models.BPE(vocab=vocabulary, merges=merges))
    byte_level_steps(inner, prefix_space)
    special = [name for name in special if name in vocabulary]
    inner.add_special_tokens([t.AddedToken(name, lstrip=name == "<mask>", special=True, normalized=False) for name in special])
    if {"<s>", "</s>", "<mask>"} <= set(special):
        ends = (("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]))
        inner.post_processor = t.processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=prefix_space)
    return FastTokenizer(inner)


def byte_level_steps(inner, prefix_space: bool = False) -> None:
    """Add GPT-2's pre-tokenizer and decoder."""
    import tokenizers as t

    inner.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    inner.decoder = t.decoders.ByteLevel()


# CLIP -----------------------------------------------------------------------------------------------------------------


def read_clip(path: pathlib.Path) -> FastTokenizer:
    """Return the tokenizer of bpe_simple_vocab_16e6.txt.gz, or of its decompressed text."""
    data = read_bytes(path)
    text = decode(gzip.decompress(data) if path.suffix == ".gz" else data, path)
    merges = parse_merges(text, path)[: 49152 - 256 - 2]
    letters = list(byte_letters().values())
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return clip_bpe({token: i for i, token in enumerate(tokens)}, merges)


def clip_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> FastTokenizer:
    """Return CLIP's tokenizer: lower-cased BPE with "</w>" at the end of a word (Radford et al. 2021, section 2.4)."""
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


# Files ----------------------------------------------------------------------------------------------------------------


def parse_merges(text: str, path: pathlib.Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        if (number == 1 and (line.startswith("#") or "version" in line)) or not line.strip():
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise UserError(f"{path}: line {number}: expected two tokens, found {line[:60]!r}")
        merges.append((parts[0], parts[1]))
    return merges


def parse(text: str, path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object of a file's text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object")
    return value


def read(path: pathlib.Path) -> str:
    return decode(read_bytes(path), path)


def read_bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder") from None


def decode(data: bytes, path: pathlib.Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from None
