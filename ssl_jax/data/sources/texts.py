"""Sources of text documents in memory."""

from collections.abc import Iterable
from typing import Any

from ssl_jax.data.sources import Source


class Texts(Source):
    """A source of text documents: {"text": str} and, where they have one, {"title": str}."""

    has_image = False

    def __init__(self, name: str, texts: list[str], titles: list[str] | None = None):
        self.name, self.texts, self.titles = name, texts, titles

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"text": self.texts[index]}
        return example | {"title": self.titles[index]} if self.titles else example

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.titles[index]}" if self.titles else f"{self.name}: document {index:,}"

    def keys(self) -> Iterable[bytes]:
        return (text.encode("utf-8", "surrogatepass") for text in self.texts)
