"""The config's `training`, `checkpoint` and `mesh` sections."""

import dataclasses

from ssl_jax import config as configs
from ssl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Length of the training, precision, evaluation, and the handling of non-finite losses."""

    duration: str = "1 epochs"
    accumulation: int = 1  # microbatches per step; the global batch does not change
    dtype: str = "float32"  # of the matmuls: "float32" or "bfloat16"
    ema: float | None = None  # decay of the parameters' moving average
    steps_per_call: int | str = "auto"  # "auto": several steps per call if steps are short
    log_every: int = 50  # steps per log line, which holds the means since the previous line
    evaluate_every: str | None = None  # a duration; None: no evaluation during training
    evaluators: tuple = ()  # names in `downstream`; empty: all of them
    patience: int | None = None  # stop after this many evaluations without improvement of checkpoint.best
    validation: float = 0.1  # share of the training examples held out to evaluate checkpoint.best
    on_nonfinite: str = "stop"  # "stop", "skip" (the update) or "rewind" (to the last checkpoint; skip the batches since)
    skip_outliers: float | None = None  # skip updates whose gradient norm is this many standard deviations above its mean
    tensorboard: bool = True  # write TensorBoard events
    wandb: str | None = None  # Weights & Biases project

    def __post_init__(self):
        configs.Duration.parse(self.duration, "duration")
        if self.evaluate_every is not None:
            configs.Duration.parse(self.evaluate_every, "evaluate_every")
        if not 1 <= self.accumulation <= 65536:
            raise UserError(f"accumulation={self.accumulation}: must lie between 1 and 65536")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype!r}: must be float32 or bfloat16")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"ema={self.ema}: must lie in [0, 1)")
        steps = self.steps_per_call
        if not (steps == "auto" if isinstance(steps, str) else 1 <= steps <= 1000):
            raise UserError(f'steps_per_call={steps!r}: must be "auto" or a number from 1 to 1000')
        if self.log_every < 1:
            raise UserError(f"log_every={self.log_every}: must be at least 1 step")
        if self.on_nonfinite not in ("stop", "skip", "rewind"):
            raise UserError(f"on_nonfinite={self.on_nonfinite!r}: must be stop, skip or rewind")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience={self.patience}: must be at least 1 evaluation")
        if not 0 < self.validation < 1:
            raise UserError(f"validation={self.validation}: must lie in (0, 1)")
        if self.skip_outliers is not None and not self.skip_outliers > 0:
            raise UserError(f"skip_outliers={self.skip_outliers}: must be above 0 standard deviations")


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When checkpoints are saved, and which are not deleted. The last step is always saved."""

    every: int | None = None  # steps between checkpoints
    every_minutes: float | None = 5.0  # minutes between checkpoints
    keep: int = 2  # keep this many of the newest checkpoints
    keep_every: int | None = None  # also keep every N-th step
    best: str | None = None  # also keep the best by this result of training.evaluate_every, such as "linear_probe/accuracy"
    mode: str | None = None  # whether "max" or "min" is best; default: the metric's direction
    features: bool = False  # cache the evaluators' features in the work directory, for the next evaluation
    grace: float = 25.0  # seconds from a shutdown signal to the end of the process

    def __post_init__(self):
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise UserError(f"every_minutes={self.every_minutes}: must be above 0")
        if self.mode not in (None, "max", "min"):
            raise UserError(f"mode={self.mode!r}: must be max or min")
        if not 1 <= self.grace <= 3600:
            raise UserError(f"grace={self.grace}: must lie between 1 and 3600 seconds")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices along each axis; one axis may be -1: all remaining devices. A CPU's devices are its cores (`cpu.split_cores`)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple = ()  # ((regex, (axis name or None, ...)), ...) before the default rules

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value < 1 and value != -1:
                raise UserError(f"{name}={value}: must be at least 1, or -1 for all remaining devices")
        if sizes.count(-1) > 1:
            raise UserError(f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: only one may be -1")
