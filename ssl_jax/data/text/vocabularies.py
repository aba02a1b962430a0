"""Vocabularies trained once and cached for all work directories."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Iterable

from ssl_jax.data.text import tokenizer_training
from ssl_jax.data.text.token_array import default_cache
from ssl_jax.data.text.tokenizers import Tokenizer, TokenizerSettings
from ssl_jax.errors import UserError

TRAINER = 1  # version of tokenizer_training.train: raise it if the same corpus would give another vocabulary

_LAST: dict[str, Tokenizer] = {}  # this process's tokenizers by cache key


def trained(
    settings: TokenizerSettings, key: str, texts: Callable[[], Iterable[str]], cache: str | pathlib.Path | None = None
) -> Tokenizer:
    """Return the tokenizer trained on `texts`, by this process or an earlier one; `key` identifies settings and corpus."""
    if key not in _LAST:
        if len(_LAST) >= 8:
            _LAST.clear()
        name = f"tokenizer-{key[:32]}-{TRAINER}-{importlib.metadata.version('tokenizers')}"
        folder = pathlib.Path(cache or default_cache()).expanduser() / name
        try:
            _LAST[key] = Tokenizer.load(folder)
        except UserError:  # missing or damaged
            _LAST[key] = tokenizer_training.train(settings, texts())
            with contextlib.suppress(OSError):
                _LAST[key].save(folder)
    return _LAST[key]


def cache_key(settings: TokenizerSettings, texts: Iterable[str]) -> str:
    """Return a digest of the settings and of every text."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings)).encode())
    for piece in texts:
        encoded = piece.encode("utf-8", "surrogatepass")
        digest.update(b"%d\0" % len(encoded) + encoded)
    return digest.hexdigest()
