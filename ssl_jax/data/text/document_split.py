"""The held-out split of a corpus without a test text: whole documents if it has several, else the end of the text."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

from ssl_jax.data.splits import held_out, is_below
from ssl_jax.data.text.corpus_files import HASHED, Documents, Piece

KEY = 1 << 16  # characters of a document that identify it


@dataclasses.dataclass
class DocumentSplit:
    """Some documents of a corpus, as a corpus. Places are those of the whole.

    Args:
        whole: the corpus.
        held: whether a document with this key is held out.
        test: whether these are the documents held out, or the others.
        share: of the documents that is held out.
    """

    whole: Documents
    held: Callable[[bytes], bool]
    test: bool
    share: float

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def size(self) -> int:
        return self.whole.size

    @property
    def skipped(self) -> int:
        return self.whole.skipped

    def fingerprint(self) -> str:
        text = f"{self.whole.fingerprint()} documents {self.share!r} {'test' if self.test else 'train'}"
        return hashlib.sha256(text.encode()).hexdigest()

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the documents' pieces, and an empty piece for each place between documents of the other split.

        Reading can resume only between documents, because within one its split is not known.
        """
        taken, before = False, None
        for piece in self.whole.pieces(start, stop):
            if before is not None:
                yield before if piece.first else before._replace(end=-1)
            if piece.first:
                taken = self.held(key(piece)) == self.test
            before = piece if taken else Piece("", False, piece.end)
        if before is not None:
            yield before


def key(piece: Piece) -> bytes:
    """Return the key of the document that a piece begins: the beginning of its text, without surrounding white space."""
    return piece.text[:KEY].strip().encode("utf-8", "surrogatepass")


def split_documents(open_corpus: Callable[[], Documents], share: float, *, test: bool) -> Documents | None:
    """Return the held-out documents, or the others; None if the corpus is one continuous text.

    A document is held out by a keyed hash of its text (`splits.held_out`), so that the split does not change if others are
    added, removed or reordered. In a corpus of up to HASHED bytes, each split has at least one document.
    """
    whole = open_corpus()
    if not whole.separable:
        return None
    held: Callable[[bytes], bool] = lambda key: is_below(key, share)
    if whole.size <= HASHED:
        keys = [key(piece) for piece in open_corpus().pieces(0, whole.size) if piece.first]
        chosen = {key for key, out in zip(keys, held_out(keys, share), strict=True) if out}
        held = chosen.__contains__
    return DocumentSplit(whole, held, test, share)
