"""The contract between a task, pretext or supervised, and the one loop that trains both."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Key

Params = Mapping[str, Any]
Batch = Mapping[str, Any]  # arrays, of JAX or of NumPy
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a data set tells a task about itself, before any array is allocated.

    `shapes` holds one *example* of the batch: name -> jax.ShapeDtypeStruct without the batch axis, as the task sees it
    (after decoding, cropping and normalisation).
    """

    shapes: Mapping[str, Any]
    classes: tuple[str, ...] = ()  # class names; () without labels
    mean: tuple[float, ...] = ()  # per channel, of images in [0, 1]
    std: tuple[float, ...] = ()
    tokenizer: Any = None  # data.text.Tokenizer
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Images:
    """A panel a person looks at: rows of images f32[rows, columns, height, width, channels] in [0, 1]."""

    array: np.ndarray
    columns: tuple[str, ...]  # the columns' captions


@dataclasses.dataclass(frozen=True)
class Text:
    """A panel of text: lines as they should be printed (unescaped; the report escapes them)."""

    lines: tuple[str, ...]


@runtime_checkable
class Task(Protocol):
    """Everything the trainer, the evaluators and the report ask of a task. All array functions are pure and jittable.

    A batch is a dict of arrays with a leading batch axis. `batch["position"]` (i32[batch]) is each example's place in the
    global batch: what is random per example is drawn from `randomness.example_keys(key, batch["position"])`, so that no
    result depends on devices or accumulation.

    `metrics` may hold "weight": the number of terms over which `loss` is a mean. Accumulated gradients and metrics are
    averaged with it; without it all microbatches weigh the same.

    `whole_batch` marks a loss over all pairs of the global batch (contrastive): the loop then does not split the batch,
    and the task itself works in `training.accumulation` chunks.

    A task may have two methods more, called once, before step 0: `initialise(params, *, load)` takes parameters of other
    runs over, `load(path)` giving (task, parameters, DataInfo); `fit(params, examples)` (or None) computes what comes
    from data (a PCA basis), `examples(n)` giving a batch of n training examples without augmentation.
    """

    name: ClassVar[str]
    data: ClassVar[str]  # the kind of data it eats, a key of ssl_jax.data.KINDS: "images", "tokens" ...
    whole_batch: ClassVar[bool] = False

    def init(self, key: Key[Array, ""], batch: Batch) -> Params: ...

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool) -> tuple[Float[Array, ""], Metrics]:
        """Loss f32[] and metrics f32[] by name. `train=False` switches off dropout and drop path, never the masking."""

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Named representations, f32[batch, ...]: "cls", "mean", "tokens", "block00/mean" ... Nothing is masked."""

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """The task's own outputs by name, as the table in docs/interop.md lists them."""

    def panels(self, params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Images | Text]: ...

    def after_update(self, params: Params, step: Array) -> Params:
        """What follows an optimizer step: clamping a logit scale, moving a teacher. Most tasks return `params`."""

    def flops(self) -> float:
        """Model FLOPs of one training example, forward and backward, by formula (causal attention counts half)."""
