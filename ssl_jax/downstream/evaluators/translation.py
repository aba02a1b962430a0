"""Translations of a whole test split and their BLEU (Papineni et al. 2002), by sacrebleu (Post 2018)."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ssl_jax.data.pipeline import eval_batches
from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.supervised.decoding import NEVER, Search
from ssl_jax.downstream.supervised.translation import detokenized
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record


@dataclasses.dataclass(frozen=True)
class TranslationMetrics(Evaluator):
    """BLEU and chrF of the test split by beam search, BLEU of greedy search and of the untranslated source.

    sacrebleu's signature is logged. With a work directory, translations.jsonl holds every sentence and bleu.json the scores
    with their signatures.
    """

    search: Search = dataclasses.field(default_factory=Search)
    greedy: bool = True  # measure greedy search too
    batch_size: int = 64
    examples: int | None = None  # only this many examples at the start of the test split; default: all

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        count = min(self.examples or data.test.size, data.test.size)
        rows = [data.test.source[i] for i in range(count)]
        references, sources = [r["target"] for r in rows], [r["source"] for r in rows]
        found = translations(encoder, data.test, self.search, self.batch_size, count)
        scores, signatures = score(found, references)
        yield Record("bleu", scores["bleu"], n=count, headline=True)
        yield from (Record(name, value, n=count) for name, value in scores.items() if name != "bleu")
        if self.greedy and self.search.beams > 1:
            greedy = translations(encoder, data.test, Search(beams=1), self.batch_size, count)
            yield Record("bleu", score(greedy, references)[0]["bleu"], setting="greedy", n=count)
        yield Record("bleu", score(sources, references)[0]["bleu"], baseline="copied_source", n=count)
        for split, dataset in (("train", data.train), ("test", data.test)):
            if dataset.info.extra.get("truncated"):
                yield Record(split, float(dataset.info.extra["truncated"]), setting="truncated")
        data.log(f"BLEU {scores['bleu']:.2f}  {signatures['bleu']}")
        if data.workdir:
            folder = pathlib.Path(data.workdir)
            lines = [json.dumps({"source": s, "reference": r, "translation": t}, ensure_ascii=False)
                     for s, r, t in zip(sources, references, found, strict=True)]  # fmt: skip
            (folder / "translations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (folder / "bleu.json").write_text(json.dumps({"scores": scores, "signatures": signatures}, indent=1) + "\n")


def translations(encoder: Encoder, dataset: Any, search: Search, batch_size: int, count: int | None = None) -> list[str]:
    """Return the translation of every example of `dataset` (parallel text), in order.

    Raises UserError if the model's probabilities are not finite.
    """
    task = encoder.task
    run = jax.jit(lambda params, raw: task.search(params, dataset.on_device(raw, None), search))
    found: list[str] = []
    for raw, mask in eval_batches(dataset, min(batch_size, dataset.size)):
        tokens, scores = (np.asarray(values)[np.asarray(mask)] for values in run(encoder.params, dict(raw)))
        if not np.all(np.isfinite(scores) & (scores > NEVER / 2)):
            raise UserError(
                f"translations of {dataset.source.name}: probabilities are NaN; training diverged: lower optimizer.lr, or"
                " evaluate an earlier checkpoint"
            )
        found += [detokenized(task.info.tokenizer, ids) for ids in tokens]
        if count is not None and len(found) >= count:
            return found[:count]
    return found


def score(translated: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return "bleu" and "chrf" of the corpus, 0 to 100, the "length_ratio", and sacrebleu's signatures."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ModuleNotFoundError:
        raise UserError("translation is measured by sacrebleu, which is not installed: pip install sacrebleu") from None
    bleu, chrf = BLEU(), CHRF()
    found = bleu.corpus_score(list(translated), [list(references)])
    scores = {"bleu": found.score, "chrf": chrf.corpus_score(list(translated), [list(references)]).score}
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    return scores | {"length_ratio": found.sys_len / max(found.ref_len, 1)}, signatures
