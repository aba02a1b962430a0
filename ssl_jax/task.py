"""The contract between a task, pretext or supervised, and the one loop that trains both."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int, Key

Params = Mapping[str, Any]
Batch = Mapping[str, Any]  # arrays, of JAX or of NumPy
Metrics = dict[str, Array]  # scalars are logged; arrays ("statistics") go to `after_update` and `diagnostics`


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """A description of the data set for the task, available before any array is allocated.

    `shapes` holds one *example* of the batch: name -> jax.ShapeDtypeStruct without the batch axis, as the task sees it
    (after decoding, cropping and normalisation).
    """

    shapes: Mapping[str, Any]
    classes: tuple[str, ...] = ()  # class names; () without labels
    mean: tuple[float, ...] = ()  # per channel, of images in [0, 1]
    std: tuple[float, ...] = ()
    tokenizer: Any = None  # data.text.tokenizers.Tokenizer
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Images:
    """A panel of the report: rows of images f32[rows, columns, height, width, channels] in [0, 1]."""

    array: np.ndarray
    columns: tuple[str, ...]  # the columns' captions
    note: str = ""  # a sentence below them


@dataclasses.dataclass(frozen=True)
class Text:
    """A panel of the report: lines of text (unescaped; the report escapes them)."""

    lines: tuple[str, ...]


@flax.struct.dataclass
class Context:
    """Inputs of a step besides parameters and batch.

    step: completed updates; total: updates of the whole run. teacher: the parameters' moving average (State.ema), or
    None. variables: the task's own state (`Task.variables`). numbers: the task's `scheduled` numbers at this step.
    """

    step: Int[Array, ""] | int = 0
    total: Int[Array, ""] | int = 1
    teacher: Any = None
    variables: Mapping[str, Any] = flax.struct.field(default_factory=dict)
    numbers: Mapping[str, Any] = flax.struct.field(default_factory=dict)


class Task:
    """The interface of a task for the trainer, the evaluators and the report. Array functions are pure and jittable.

    A batch is a dict of arrays with a leading batch axis. `batch["position"]` (i32[batch]) is each example's place in the
    global batch: use `randomness.example_keys(key, batch["position"])` for random choices per example, so that no
    result depends on devices or accumulation.

    The trainer divides the global batch over devices and `training.accumulation` microbatches, calls `loss` on each piece,
    and averages losses, metrics and gradients by `metrics["weight"]`, the number of terms in the mean (by default all
    examples have equal weight). So `loss` must not relate the examples of a piece to each other. Computations that do
    belong into `prepare` (mixing examples), or, with `relates_examples`, into `embed` and `joint_loss`.
    """

    name: ClassVar[str]  # of the task in a config
    data: ClassVar[str]  # the kind of data it reads, a key of ssl_jax.data.KINDS: "images", "tokens" ...
    needs_teacher: ClassVar[bool] = False  # `loss` reads context.teacher: training.ema or schedules.ema must be set

    @classmethod
    def from_config(cls, config: Any, info: DataInfo) -> "Task":
        """Build the task from a config and the data's description; raise UserError if they do not fit together."""
        raise NotImplementedError(cls)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        """Return initial parameters in f32; of `batch`, only shapes are used."""
        raise NotImplementedError(type(self))

    def variables(self, params: Params) -> dict[str, Any]:
        """Return the initial state that is neither parameter nor teacher: a centre, running moments, a queue."""
        return {}

    def fit(self, variables: Mapping[str, Any], examples: Callable[[int], Batch]) -> Mapping[str, Any]:
        """Compute variables from data (a PCA basis), once before step 0; `examples(n)` returns n training examples."""
        return variables

    def scheduled(self) -> dict[str, float]:
        """Return the task's numbers that a config's `schedules` may vary, each with its constant value."""
        return {}

    def context(self, params: Params) -> Context:
        """Return a context outside of training: initial variables, constant numbers, `params` as the teacher."""
        return Context(teacher=params, variables=self.variables(params), numbers=self.scheduled())

    # The loss -----------------------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Batch:
        """Transform the global batch before it is divided into pieces: mixup, counts over the whole batch."""
        return batch

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss of a piece of the batch, and metrics. `train=False` disables dropout, never the masking."""
        rows = self.embed(params, batch, key, train=train, context=context)
        return self.joint_loss(params, rows, batch, train=train, context=context)

    @property
    def relates_examples(self) -> bool:
        """Return whether the loss relates examples (contrastive, batch norm). The trainer then computes `joint_loss` on the
        global batch, and with accumulation `embed` piece by piece, forward and backward (GradCache: Gao et al. 2021)."""
        return False

    def embed(self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None) -> Any:
        """Return arrays with a leading batch axis, each row computed from its own example."""
        raise NotImplementedError(type(self))

    def joint_loss(
        self, params: Params, rows: Any, batch: Batch, *, train: bool, context: Context | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return loss and metrics of the global batch from the rows of `embed`."""
        raise NotImplementedError(type(self))

    def after_update(
        self, params: Params, variables: Mapping[str, Any], statistics: Mapping[str, Array], context: Context
    ) -> tuple[Params, Mapping[str, Any]]:
        """Return parameters and variables after an optimizer step: a clamped logit scale, a moved centre.

        statistics: the array metrics of this step's loss, averaged over the global batch.
        """
        return params, variables

    def diagnostics(self, statistics: Mapping[str, Array]) -> Metrics:
        """Return scalars derived from the averaged statistics (a deviation, an effective rank) for the log."""
        return {}

    def trouble(self, metrics: Mapping[str, float]) -> str | None:
        """Return one line if the averaged metrics of a log line show that training has failed (collapsed features)."""
        return None

    # The trained model ----------------------------------------------------------------------------------------------------

    def features(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return named representations, f32[batch, ...]: "cls", "mean", "tokens", "block00/mean", ..., without masking."""
        raise NotImplementedError(type(self))

    def forward(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return the task's own outputs by name, as listed in docs/interop.md."""
        return self.features(params, batch)

    def panels(
        self, params: Params, batch: Batch, key: Key[Array, ""], *, context: Context | None = None
    ) -> dict[str, Images | Text]:
        """Return the report's panels for a few examples."""
        return {}

    def tokenize(self, texts: Any) -> dict[str, np.ndarray]:
        """Return texts as a batch, for tasks that embed text and images separately."""
        raise NotImplementedError(type(self))

    def flops(self) -> float:
        """Return the model FLOPs of one training example, forward and backward (causal attention counts half); 0: unknown."""
        return 0.0


def by_default(task: Task, method: str) -> bool:
    """Return whether a task inherits the default of an optional method."""
    return getattr(type(task), method, None) is getattr(Task, method)


def tokens_of(info: DataInfo) -> int:
    """Return the number of tokens of one example if examples are text; else 1."""
    if "tokens" not in info.shapes or "image" in info.shapes:
        return 1
    return int(info.extra.get("tokens_per_example", info.shapes["tokens"].shape[-1]))
