"""Joint embedding: two views of an image get similar embeddings, and a second term prevents collapse.

SimCLR (Chen et al. 2020, arXiv:2002.05709) contrasts them with other images, VICReg (Bardes et al. 2022, arXiv:2105.04906)
bounds each dimension's variance from below and decorrelates the dimensions, Barlow Twins (Zbontar et al. 2021,
arXiv:2103.03230) makes the cross-correlation of the views the identity.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.errors import UserError
from ssl_jax.models.heads import Projector, unit
from ssl_jax.models.vit import ViT
from ssl_jax.pretext import collapse
from ssl_jax.pretext.views import ImageTask, encode_views, init_encoder, view_shape
from ssl_jax.randomness import example_keys, substream
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params
from ssl_jax.training.grad_cache import in_pieces

Embeddings = Float[Array, "batch dim"]
LOSSES = ("nt_xent", "vicreg", "barlow_twins")


@dataclasses.dataclass(frozen=True)
class JointEmbeddingSettings:
    """The settings of `task`; the defaults are SimCLR's on CIFAR-10 (Chen et al. 2020, appendix B.9)."""

    loss: str = "nt_xent"  # "nt_xent", "vicreg" or "barlow_twins"
    hidden: tuple[int, ...] = (2048,)  # widths of the projector's hidden layers
    outputs: int = 128  # dimensions of the embeddings
    norm: str | None = "batch"  # normalisation of the projector's hidden layers: "batch" or None
    last_norm: bool = False  # batch norm after the projector's last layer
    temperature: float = 0.5  # of NT-Xent; may follow `schedules.temperature`
    logit_chunks: int = 1  # compute NT-Xent's 2 batch x 2 batch similarities in this many pieces
    invariance: float = 25.0  # weights of VICReg's three terms
    variance: float = 25.0
    covariance: float = 1.0
    redundancy: float = 0.005  # weight of Barlow Twins' off-diagonal terms

    def __post_init__(self):
        for name, choices in (("loss", LOSSES), ("norm", ("batch", None))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(map(str, choices))}")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be above 0")
        if min(*self.hidden, self.outputs, 1) < 1 or self.logit_chunks < 1:
            raise UserError(
                f"hidden={self.hidden}, outputs={self.outputs}, logit_chunks={self.logit_chunks}: must be at least 1"
            )
        if min(self.invariance, self.variance, self.covariance, self.redundancy) < 0:
            raise UserError("invariance, variance, covariance and redundancy must not be negative")


@dataclasses.dataclass(frozen=True)
class JointEmbedding(ImageTask):
    """Parameters: "encoder" (a ViT) and "projector". Batches hold "pair" f32[batch, 2, h, w, c] (`data.views`)."""

    config: JointEmbeddingSettings
    encoder: ViT
    info: DataInfo

    name: ClassVar[str] = "joint_embedding"

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "JointEmbedding":
        task, batch = read(JointEmbeddingSettings, config.task, "task"), config.data.get("batch_size", 0)
        view_shape(info, "pair", 2, "joint_embedding compares two views of an image", exactly=True)
        if batch == 1:
            raise UserError("data.batch_size=1: the loss compares images with each other; use at least 2")
        if task.logit_chunks > 1 and batch % task.logit_chunks:
            raise UserError(f"task.logit_chunks={task.logit_chunks}: must divide data.batch_size={batch}")
        return cls(task, models.build("images", config, info), info)

    @property
    def projector(self) -> Projector:
        c = self.config
        return Projector(c.hidden, c.outputs, c.norm, c.last_norm)

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        projector = self.projector.init(substream(key, "projector"), jnp.zeros((1, self.encoder.config.width)))["params"]
        return {"encoder": init_encoder(self.encoder, key, self.info), "projector": projector}

    def scheduled(self) -> dict[str, float]:
        return {"temperature": self.config.temperature} if self.config.loss == "nt_xent" else {}

    # The loss -----------------------------------------------------------------------------------------------------------

    @property
    def relates_examples(self) -> bool:
        return True

    def embed(self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None) -> Any:
        """Return the encoder's pooled representations of both views, f32[batch, 2, width]."""
        keys = example_keys(key, batch["position"]) if train else None
        return encode_views(self.encoder, params["encoder"], batch["pair"], keys, "pair")[1]

    def joint_loss(
        self, params: Params, rows: Any, batch: Batch, *, train: bool, context: Context | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss of the global batch; only in SimCLR does batch norm see both views together."""
        c, project = self.config, lambda x: self.projector.apply({"params": params["projector"]}, x)
        if c.loss == "nt_xent":
            a, b = jnp.split(project(jnp.concatenate([rows[:, 0], rows[:, 1]])), 2)
            temperature = c.temperature if context is None else context.numbers["temperature"]
            loss, metrics = nt_xent(a, b, temperature, c.logit_chunks)
        else:
            a, b = project(rows[:, 0]), project(rows[:, 1])
            if c.loss == "vicreg":
                loss, metrics = vicreg(a, b, c.invariance, c.variance, c.covariance)
            else:
                loss, metrics = barlow_twins(a, b, c.redundancy)
        scale = a if c.loss == "vicreg" else unit(a) * c.outputs**0.5  # only VICReg's loss depends on the embeddings' lengths
        metrics |= {"loss": loss, "embedding_std": collapse.deviation(scale)}
        return loss, {**metrics, **collapse.moments(rows[:, 0])}

    diagnostics, trouble = staticmethod(collapse.spread), staticmethod(collapse.verdict)

    def flops(self) -> float:
        return 3 * 2 * (self.encoder.flops_forward() + self.projector.flops_forward(self.encoder.config.width))


def nt_xent(a: Embeddings, b: Embeddings, temperature: Any, chunks: int = 1) -> tuple[Float[Array, ""], Metrics]:
    """Return NT-Xent (Chen et al. 2020, equation 1) and how often a view's other view is the most similar embedding.

    L = 1/2n sum_i [log sum_{k != i} exp(s_ik / t) - s_ij / t] over the 2n unit vectors of both views, j the other view of i.
    """
    a, b = unit(a), unit(b)
    n = len(a)

    def rows(piece, everywhere, temperature):
        a, b, place = piece
        z, own = jnp.concatenate(everywhere), jnp.concatenate([place, place + n])
        similarity = jnp.matmul(jnp.concatenate([a, b]), z.T, precision="highest") / temperature
        similarity = jnp.where(own[:, None] == jnp.arange(2 * n), -jnp.inf, similarity)
        other = (own + n) % (2 * n)
        right = jnp.argmax(similarity, axis=1) == other
        return jax.nn.logsumexp(similarity, axis=1) - jnp.take_along_axis(similarity, other[:, None], axis=1)[:, 0], right

    losses, right = in_pieces(rows, (a, b, jnp.arange(n)), (a, b), (temperature,), chunks)
    return jnp.mean(losses), {"agreement": jnp.mean(right.astype(jnp.float32))}


def vicreg(
    a: Embeddings, b: Embeddings, invariance: float, variance: float, covariance: float
) -> tuple[Float[Array, ""], Metrics]:
    """Return VICReg's loss (Bardes et al. 2022, equation 6, with the factors of its published code) and its terms.

    s = mean (a - b)^2; v = mean_d max(0, 1 - sqrt(var a_d + 1e-4)), averaged over both views; c = sum of the squared
    off-diagonal covariances over dim, summed over both views; variances and covariances are unbiased.
    """

    def terms(x):
        x = x - jnp.mean(x, axis=0)
        matrix = jnp.matmul(x.T, x, precision="highest") / (len(x) - 1)
        off_diagonal = jnp.sum(jnp.square(matrix)) - jnp.sum(jnp.square(jnp.diagonal(matrix)))
        return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.diagonal(matrix) + 1e-4))), off_diagonal / x.shape[1]

    (hinge_a, off_a), (hinge_b, off_b) = terms(a), terms(b)
    found = {"invariance": jnp.mean(jnp.square(a - b)), "variance": (hinge_a + hinge_b) / 2, "covariance": off_a + off_b}
    return invariance * found["invariance"] + variance * found["variance"] + covariance * found["covariance"], found


def barlow_twins(a: Embeddings, b: Embeddings, redundancy: float) -> tuple[Float[Array, ""], Metrics]:
    """Return Barlow Twins' loss (Zbontar et al. 2021, equation 1) and its terms.

    L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2, C the cross-correlation of the two views' dimensions over the batch.
    """
    standard = lambda x: (x - jnp.mean(x, axis=0)) * jax.lax.rsqrt(jnp.var(x, axis=0) + 1e-5)
    correlation = jnp.matmul(standard(a).T, standard(b), precision="highest") / len(a)
    diagonal = jnp.diagonal(correlation)
    invariance, off = jnp.sum(jnp.square(1 - diagonal)), jnp.sum(jnp.square(correlation)) - jnp.sum(jnp.square(diagonal))
    return invariance + redundancy * off, {"invariance": invariance, "redundancy": off}
