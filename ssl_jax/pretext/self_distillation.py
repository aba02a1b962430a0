"""Self-distillation: a student matches its teacher, its moving average, on other crops of an image and on masked patches.

DINO (Caron et al. 2021, arXiv:2104.14294); with `patches`, iBOT's patch term (Zhou et al. 2022, arXiv:2111.07832); with
centring="sinkhorn", DINOv2's Sinkhorn-Knopp targets (Oquab et al. 2024, arXiv:2304.07193).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.config import read
from ssl_jax.errors import UserError
from ssl_jax.models.heads import PrototypeHead
from ssl_jax.models.patches import take
from ssl_jax.models.vit import ViT
from ssl_jax.pretext import collapse
from ssl_jax.pretext.patch_masking import HiddenBlocks, hidden_blocks
from ssl_jax.pretext.targets import Scores, between_crops, over_patches, sinkhorn_knopp
from ssl_jax.pretext.views import ImageTask, encode_views, init_encoder, view_keys, view_shape
from ssl_jax.randomness import example_keys, substream
from ssl_jax.task import Batch, Context, DataInfo, Metrics, Params

CENTRINGS = ("mean", "sinkhorn", None)


@dataclasses.dataclass(frozen=True)
class PatchTerm:
    """iBOT's term: with probability `prob`, hide a fraction in `ratio` of the patches of a global crop."""

    weight: float = 1.0
    prob: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    shared_head: bool = True  # as in iBOT; DINOv2 has a separate head for patches

    def __post_init__(self):
        if not (0 < self.ratio[0] <= self.ratio[1] < 1 and 0 <= self.prob <= 1 and self.weight >= 0):
            wanted = "ratio (from, to) with 0 < from <= to < 1, prob in [0, 1] and weight at least 0"
            raise UserError(f"ratio={self.ratio}, prob={self.prob}, weight={self.weight}: must be {wanted}")


@dataclasses.dataclass(frozen=True)
class SelfDistillationSettings:
    """The settings of `task`; the defaults are DINO's. Both temperatures of the teacher may follow `schedules`."""

    prototypes: int = 65536
    hidden: int = 2048  # width of the head's two hidden layers
    bottleneck: int = 256
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    patch_temperature: float = 0.04  # the teacher's, for patches
    centring: str | None = "mean"  # "mean", "sinkhorn" or None (sharpened targets without centring)
    centre_momentum: float = 0.9
    sinkhorn_iterations: int = 3
    patches: PatchTerm | None = None

    def __post_init__(self):
        if self.centring not in CENTRINGS:
            raise UserError(f"centring={self.centring!r}: must be one of {', '.join(map(str, CENTRINGS))}")
        for name in ("prototypes", "hidden", "bottleneck", "sinkhorn_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("student_temperature", "teacher_temperature", "patch_temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.centre_momentum < 1:
            raise UserError(f"centre_momentum={self.centre_momentum}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class SelfDistillation(ImageTask):
    """Parameters: "encoder" (a ViT), "head" and, unless patches share it, "patch_head".

    Batches hold "globals" f32[batch, crops, h, w, c] and, for smaller crops, "locals" (`data.views`).
    """

    config: SelfDistillationSettings
    encoder: ViT
    info: DataInfo

    name: ClassVar[str] = "self_distillation"
    needs_teacher: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: ConfigDict, info: DataInfo) -> "SelfDistillation":
        task = read(SelfDistillationSettings, config.task, "task")
        view_shape(info, "globals", 2, "self_distillation compares crops of an image")
        encoder = models.build("images", config, info, mask_token=task.patches is not None)
        for name in {"globals", "locals"} & set(info.shapes):
            encoder.grid_of(tuple(info.shapes[name].shape[1:3]))  # raises UserError if patches do not divide the crops
        return cls(task, encoder, info)

    @property
    def head(self) -> PrototypeHead:
        c = self.config
        return PrototypeHead(c.prototypes, c.hidden, c.bottleneck, dtype=self.encoder.dtype)

    @property
    def patch_head(self) -> str:
        """Return the name of the head for patches."""
        return "head" if self.config.patches is None or self.config.patches.shared_head else "patch_head"

    def init(self, key: Key[Array, ""], batch: Batch) -> Params:
        vector = jnp.zeros((1, self.encoder.config.width))
        heads = {name: self.head.init(substream(key, name), vector)["params"] for name in sorted({"head", self.patch_head})}
        return {"encoder": init_encoder(self.encoder, key, self.info), **heads}

    def variables(self, params: Params) -> dict[str, Any]:
        names = ["centre"] + ["patch_centre"] * (self.config.patches is not None)
        return {name: jnp.zeros(self.config.prototypes) for name in names} if self.config.centring == "mean" else {}

    def scheduled(self) -> dict[str, float]:
        names = ["teacher_temperature"] + ["patch_temperature"] * (self.config.patches is not None)
        return {name: getattr(self.config, name) for name in names}

    # The loss -----------------------------------------------------------------------------------------------------------

    @property
    def relates_examples(self) -> bool:
        return self.config.centring == "sinkhorn"

    def embed(self, params: Params, batch: Batch, key: Key[Array, ""], *, train: bool, context: Context | None) -> Any:
        """Return the heads' unit vectors: the student's of all crops, the teacher's of global crops, and hidden patches'."""
        keys, images, teacher = example_keys(key, batch["position"]), batch["globals"], jax.lax.stop_gradient(context.teacher)
        dropout, blocks = substream(keys, "dropout") if train else None, self.hidden(keys, images)
        encode = lambda p, views, *options: encode_views(self.encoder, p["encoder"], views, *options)
        vectors = lambda p, x, head="head": self.head.apply({"params": p[head]}, x, method="vectors")
        seen, pooled = encode(teacher, images, None, "globals")
        tokens, student = encode(params, images, dropout, "globals", None if blocks is None else blocks.hidden)
        if "locals" in batch:
            student = jnp.concatenate([student, encode(params, batch["locals"], dropout, "locals")[1]], axis=1)
        rows = {"student": vectors(params, student), "teacher": vectors(teacher, pooled), "pooled": pooled[:, 0]}
        if blocks is not None:
            flat = lambda x: x.reshape(-1, *x.shape[2:])
            picked = lambda x: take(flat(x), flat(blocks.places)).reshape(*blocks.places.shape, -1)
            every, mine = vectors(teacher, seen, self.patch_head), vectors(params, picked(tokens), self.patch_head)
            rows["patches"] = {"student": mine, "teacher": picked(every), "real": blocks.real, "mean": every.mean((1, 2))}
        return rows

    def hidden(self, keys: Key[Array, "batch"], images: Float[Array, "batch crops h w c"]) -> HiddenBlocks | None:
        """Draw the patches hidden from the student in each global crop; None without the patch term."""
        if self.config.patches is None:
            return None
        grid, c = self.encoder.grid_of(images.shape[2:4]), self.config.patches
        draw = jax.vmap(jax.vmap(lambda key: hidden_blocks(key, grid, c.ratio, c.prob)))
        return draw(view_keys(keys, "mask", images.shape[1]))

    def joint_loss(
        self, params: Params, rows: Any, batch: Batch, *, train: bool, context: Context | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean cross-entropy between the teacher's targets and the student's predictions of other crops."""
        c, teacher, numbers, v = self.config, jax.lax.stop_gradient(context.teacher), context.numbers, context.variables
        scores = lambda p, x, head="head": self.head.apply({"params": p[head]}, x, method="scores")
        predict = lambda x, head="head": jax.nn.log_softmax(scores(params, x, head) / c.student_temperature)
        logits = scores(teacher, rows["teacher"])
        target = self.targets(logits, v.get("centre"), numbers["teacher_temperature"])
        loss, entropy = between_crops(target, predict(rows["student"])), jnp.mean(collapse.entropy(target))
        metrics = {"crops": loss, "target_entropy": entropy, "divergence": loss - entropy}
        statistics = {"centre": jnp.mean(logits, axis=(0, 1)), "target": jnp.mean(target, axis=(0, 1))}
        if c.patches is not None:
            patches, head = rows["patches"], self.patch_head
            target = self.targets(
                scores(teacher, patches["teacher"], head), v.get("patch_centre"), numbers["patch_temperature"], patches["real"]
            )
            metrics["patches"] = over_patches(target, predict(patches["student"], head), patches["real"])
            statistics["patch_centre"] = jnp.mean(scores(teacher, patches["mean"], head), axis=0)
            loss = loss + c.patches.weight * metrics["patches"]
        return loss, {"loss": loss, **metrics, **jax.lax.stop_gradient(statistics), **collapse.moments(rows["pooled"])}

    def targets(self, logits: Scores, centre: Array | None, temperature: Any, real: Array | None = None) -> Scores:
        """Return the teacher's distributions over prototypes, without gradient; `real` is 0 for padded rows."""
        if self.config.centring == "sinkhorn":
            return jax.lax.stop_gradient(sinkhorn_knopp(logits / temperature, real, self.config.sinkhorn_iterations))
        return jax.lax.stop_gradient(jax.nn.softmax((logits - (0 if centre is None else centre)) / temperature))

    def after_update(
        self, params: Params, variables: Mapping[str, Any], statistics: Mapping[str, Array], context: Context
    ) -> tuple[Params, Mapping[str, Any]]:
        """Update the centres with the batch's mean scores, after the loss has used the old ones (Caron et al., equation 4)."""
        m = self.config.centre_momentum
        return params, {name: m * centre + (1 - m) * statistics[name] for name, centre in variables.items()}

    def diagnostics(self, statistics: Metrics) -> Metrics:
        return collapse.spread(statistics) | {"prototypes_in_use": collapse.in_use(statistics["target"])}

    def trouble(self, metrics: Mapping[str, float]) -> str | None:
        return collapse.verdict(metrics, self.config.prototypes)

    def flops(self) -> float:
        views = [self.info.shapes[name].shape for name in ("globals", "locals") if name in self.info.shapes]
        encoder = [self.encoder.clone(image_size=tuple(shape[1:3])).flops_forward() for shape in views]
        head = self.head.flops_forward(self.encoder.config.width)
        costs = [shape[0] * (cost + head) for shape, cost in zip(views, encoder, strict=True)]
        return 3 * sum(costs) + costs[0]
