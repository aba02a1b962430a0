"""k nearest neighbours by cosine similarity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import flat, majority
from ssl_jax.downstream.evaluators.features import Encoder, separately
from ssl_jax.downstream.metrics import classification as metrics
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record


@dataclasses.dataclass(frozen=True)
class KNN(Evaluator):
    """Weighted k-nearest-neighbour classification (Wu et al. 2018, section 3.4; the protocol of DINO).

    Where an example may have several classes, a neighbour votes for each of its own, and an example's score of a class is the
    share of the votes for it: "mean_average_precision" takes the place of "accuracy", and `metrics.several_classes` are those
    of the first k.

    Where the test split is the training split, each example leaves itself out. Yields "accuracy" (of the first k),
    "balanced_accuracy" and "f1_macro" beside it, "accuracy" under "k=20" for each k, and the same accuracies of the
    baselines. kNN underrates masked autoencoders, whose features are not trained to be compared by angle: in lightly's
    ImageNet benchmark (100 epochs) a ViT-B with 46.0 % by a linear probe has 11.2 %.
    """

    representation: str = "mean"
    k: int | tuple = (20, 1, 5, 10, 100, 200)
    temperature: float = 0.07
    baselines: bool = True
    batch_size: int = 128  # of the encoder's pass

    requires_labels = ("train", "test")
    several_classes = True
    excludes_itself = True
    notes = {"masked_image": "kNN says little about masked autoencoders; judge them by fine-tuning and the linear probe"}

    def __post_init__(self):
        super().__post_init__()
        if not self.ks or any(not isinstance(k, int) or k < 1 for k in self.ks):
            raise UserError(f"k={self.k}: must be a positive whole number, or several")
        if self.temperature <= 0:
            raise UserError(f"temperature={self.temperature}: must be positive")

    @property
    def representations(self) -> tuple[str, ...]:
        return (self.representation,)

    @property
    def ks(self) -> tuple[int, ...]:
        return (self.k,) if isinstance(self.k, int) else tuple(dict.fromkeys(self.k))

    @property
    def names(self) -> tuple[str, ...]:
        return ("accuracy", "balanced_accuracy", "f1_macro", "*/accuracy", *metrics.SEVERAL, "*/mean_average_precision")

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        yield from self._measure(data, None, encoder)
        if self.baselines:
            for name, baseline in encoder.baselines.items():
                yield from baseline.result(data, repr(self), separately(functools.partial(self._measure, data, name)))
            train, test = (encoder.extract(d, (self.representation,))["label"] for d in (data.train, data.test))
            if train.ndim == 1:
                yield majority(train, test)

    def _measure(self, data: EvaluationData, baseline: str | None, encoder: Encoder) -> list[Record]:
        train, test = (encoder.extract(d, (self.representation,), self.batch_size) for d in (data.train, data.test))
        classes = metrics.check_labels(train.get("label"), test.get("label"), data.classes)
        self._check_k(len(train["label"]) - data.same_split)
        bank = flat(train[self.representation])
        queries = None if data.same_split else flat(test[self.representation])
        votes = knn_votes(bank, train["label"], queries, classes, ks=self.ks, temperature=self.temperature)
        several = train["label"].ndim == 2
        found = (metrics.several_classes if several else metrics.classification)(votes[self.ks[0]], test["label"])
        kept = ("mean_average_precision",) if several else ("accuracy",)
        kept += ("balanced_accuracy", "f1_macro", "subset_accuracy") if baseline is None else ()
        records = [
            record.of(baseline=baseline or record.baseline, headline=record.headline and baseline is None)
            for record in found
            if record.metric in kept and record.class_name is None and None in (baseline, record.baseline)
        ]
        return records + [
            metrics.headline_metric(votes[k], test["label"], baseline=baseline, setting=f"k={k}") for k in self.ks
        ]

    def _check_k(self, neighbours: int) -> None:
        if max(self.ks) > neighbours:
            raise UserError(f"k={max(self.ks)}: there are only {neighbours} training examples to be neighbours; lower k")

    def check(self, data: EvaluationData) -> None:
        metrics.check_labels(data.train.labels(), data.test.labels(), data.classes)
        self._check_k(data.train.size - data.same_split)


def knn_votes(
    bank: Float[np.ndarray, "bank dim"],
    labels: Int[np.ndarray, "bank ..."],
    queries: Float[np.ndarray, "queries dim"] | None,
    classes: int,
    *,
    ks: tuple[int, ...],
    temperature: float = 0.07,
) -> dict[int, Float[np.ndarray, "rows classes"]]:
    """For each k the sum over the k nearest of exp(similarity / temperature), by class.

    Ties: of equally similar neighbours the one earlier in the bank is nearer; of classes with equal votes the lower
    number wins (`argmax`). Without `queries` the bank queries itself, each example leaving itself out. With `labels`
    [bank, classes] of 0 and 1, return the share of that sum over all k which belongs to the class, less 0.5 (0: half of it).
    """
    similar, index = nearest_neighbours(bank, queries, max(ks), exact=ks)
    weight = np.exp(similar.astype(np.float64) / temperature)
    if labels.ndim == 2:
        return {k: _shares(labels, index[:, :k], weight[:, :k]) for k in ks}
    rows = np.arange(len(index))[:, None]
    votes, start, sums = {}, 0, np.zeros((len(index), classes))
    for k in sorted(set(ks)):
        place = (rows * classes + labels[index[:, start:k]]).ravel()
        sums = sums + np.bincount(place, weight[:, start:k].ravel(), minlength=sums.size).reshape(sums.shape)
        votes[k], start = sums, k
    return votes


def _shares(
    labels: Int[np.ndarray, "bank classes"], index: Int[np.ndarray, "rows k"], weight: Float[np.ndarray, "rows k"]
) -> Float[np.ndarray, "rows classes"]:
    """Return the weighted share of the neighbours that have each class, less 0.5."""
    votes = [np.sum(weight * column[index], axis=1) for column in np.ascontiguousarray(labels.T)]
    return np.stack(votes, axis=1) / np.sum(weight, axis=1, keepdims=True) - 0.5


def nearest_neighbours(
    bank: Float[np.ndarray, "bank dim"],
    queries: Float[np.ndarray, "queries dim"] | None,
    k: int,
    *,
    exact: tuple[int, ...] = (),
    query_block: int = 2048,
    bank_block: int = 8192,
) -> tuple[Float[np.ndarray, "rows {k}"], Int[np.ndarray, "rows {k}"]]:
    """Cosine similarities, falling, and indices of the `k` nearest of the bank; memory is one block of similarities.

    Queries are divided over the local devices, since on a CPU XLA's top_k uses one core. Similarities are f32. Where these
    cannot tell which example is the last among the nearest `k`, or among so many as `exact` names, f64 decides among those
    and SPARE more. Without `queries` the bank queries itself and no example is its own neighbour. Raises UserError for
    features that are not finite.
    """
    own = queries is None
    queries = bank if own else queries
    metrics.check_finite(bank, "features of the training split"), metrics.check_finite(queries, "features of the test split")
    if not 1 <= k <= len(bank) - own:
        raise UserError(f"k={k}: there are only {len(bank) - own} neighbours")
    wanted, k = k, min(k + SPARE, len(bank) - own)
    bank_block = max(min(bank_block, len(bank)), k)
    mesh = Mesh(np.array(jax.local_devices()), ("query",))
    every, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("query"))
    query_block = -(-min(query_block, len(queries)) // mesh.size) * mesh.size
    blocks = []
    for start in range(0, len(bank), bank_block):
        block = bank[start : start + bank_block]
        pad = np.zeros((bank_block - len(block), bank.shape[1]), np.float32)
        blocks.append((start, len(block), np.concatenate([block, pad]) if len(pad) else block))
    fits = bank.nbytes <= RESIDENT  # else every block of queries reads the bank again
    blocks = [(np.int32(s), np.int32(n), jax.device_put(b, every) if fits else b) for s, n, b in blocks]
    merge = _merge_over(mesh, k, own)
    best, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
    for start in range(0, len(queries), query_block):
        block = queries[start : start + query_block]
        count = len(block)
        block = np.concatenate([block, np.zeros((query_block - count, bank.shape[1]), np.float32)])
        position = np.arange(start, start + query_block, dtype=np.int32)
        running = np.full((query_block, k), -np.inf, np.float32), np.zeros((query_block, k), np.int32)
        block, position, running = jax.device_put((block, position, running), rows)
        for bank_start, bank_count, bank_rows in blocks:
            running = merge(running, block, position, bank_rows, bank_start, bank_count)
        best[start : start + count], places[start : start + count] = (np.asarray(a)[:count] for a in running)
    _decide(bank, queries, best, places, (*exact, wanted))
    return best[:, :wanted], places[:, :wanted]


RESIDENT = 2**30  # bytes of a bank that may lie on the device whole
SPARE = 16  # candidates beyond the last neighbour; more that are as near are as good as equal, and the earlier go first
CLOSE = 2e-6  # f32 similarities of unit vectors are this exact


def _decide(bank, queries, best, places, ends: tuple[int, ...]) -> None:
    """Sorts in place, by f64 similarity and then by index, the rows where the two sides of an end are too close for f32."""
    close = np.zeros(len(best), bool)
    for end in ends:
        if end < best.shape[1]:
            close |= best[:, end - 1] - best[:, end] < CLOSE
    unit = lambda a: a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    doubtful = np.flatnonzero(close)
    for rows in np.array_split(doubtful, -(-len(doubtful) // 64)) if len(doubtful) else ():
        near, query = unit(bank[places[rows]].astype(np.float64)), unit(queries[rows].astype(np.float64))
        similar = np.round(np.einsum("qkd,qd->qk", near, query), 12)  # equal rows are equally near, in whatever order they lie
        order = np.lexsort((places[rows], -similar), axis=1)
        best[rows] = np.take_along_axis(similar, order, axis=1)
        places[rows] = np.take_along_axis(places[rows], order, axis=1)


@jax.jit
def _unit(x):
    """Rows of norm 1, and 0 for 0. A power of two, which is exact, keeps the squares of large and small rows in range."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    x = jnp.ldexp(x, -exponent)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@functools.cache
def _merge_over(mesh: Mesh, k: int, own: bool):
    """Return `_merge` compiled for queries that are divided over `mesh`."""
    query, whole = PartitionSpec("query"), PartitionSpec()
    merge = functools.partial(_merge, k=k, own=own)
    specs = (query, query, query, whole, whole, whole)
    return jax.jit(jax.shard_map(merge, mesh=mesh, in_specs=specs, out_specs=query, check_vma=False), donate_argnums=0)


def _merge(running, queries, position, rows, start, count, *, k: int, own: bool):
    """The best k of the running best and of one block of the bank. top_k puts the lower index first among equals.

    position: of each query in the bank, where it is excluded with `own`.
    """
    similar = jnp.matmul(_unit(queries), _unit(rows).T, precision="highest")
    column = jnp.arange(len(rows))
    hidden = column >= count
    if own:
        hidden = hidden | (column + start == position[:, None])
    similar = jnp.where(hidden, -jnp.inf, similar)
    value, index = jax.lax.top_k(similar, k)
    value, place = jax.lax.top_k(jnp.concatenate([running[0], value], axis=1), k)
    return value, jnp.take_along_axis(jnp.concatenate([running[1], index.astype(jnp.int32) + start], axis=1), place, axis=1)
