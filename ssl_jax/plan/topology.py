"""Parse the devices that a plan is for: "v5e:4x4", "h100:8", "local:2". They need not be present."""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ssl_jax import target
from ssl_jax.errors import UserError
from ssl_jax.target import Target

TPUS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}  # a chip of these is one JAX device
GPUS = {"h100": "NVIDIA H100 80GB HBM3"}
SPELLINGS = "v5e:8x8, v5p:2x2x2, v6e:4x4, h100:8 or local:2"
# libtpu asks a TPU VM's metadata server what it is on, and elsewhere warns until it is told something. Nothing runs on a chip,
# so that several processes may compile.
NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
# What XLA has to know of a card to compile for it (tensorflow's `GpuTargetConfigProto`).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """`target.count` devices of one kind, named by `text`."""

    text: str
    target: Target
    analysed: bool = False  # estimate by analysis even if there is a compiler

    @property
    def local(self) -> bool:
        return self.text.startswith("local")

    def missing(self) -> str | None:
        """Return what the user must do to compile for these devices, such as a command to run; None if nothing is missing."""
        import jax

        if self.analysed:
            return "omit --analyse"
        if self.local:
            return None
        if self.target.platform == "tpu":
            return None if importlib.util.find_spec("libtpu") else "pip install 'jax[tpu]'"
        if importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda13"):
            return None
        version = jax.__version__
        wheels = f"jax-cuda13-pjrt=={version} jax-cuda13-plugin=={version} nvidia-cuda-nvcc nvidia-nvvm"
        return f"pip install --no-deps {wheels}"

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace programs for these devices within this context."""
        away = self.target.platform == "gpu" and not self.local
        with target.told(self.target), without_cudnn() if away else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Compile programs for these devices within this context: libtpu ends the process at a flag in XLA_FLAGS, which are
        this machine's, that it does not know."""
        flags = os.environ.pop("XLA_FLAGS", None) if self.target.platform == "tpu" and not self.local else None
        try:
            yield
        finally:
            if flags is not None:
                os.environ["XLA_FLAGS"] = flags

    @functools.cached_property
    def devices(self) -> Sequence[Any]:
        """JAX's devices, or descriptions of them that programs can be compiled for."""
        import jax
        from jax.experimental import topologies

        if self.local:
            return jax.devices()[: self.target.count]
        try:
            if self.target.platform == "tpu":
                for name, value in NO_TPU_HERE.items():
                    os.environ.setdefault(name, value)
                return topologies.get_topology_desc(self.text, "tpu").devices
            count = self.target.count
            return topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}").devices
        except Exception as error:  # jaxlib raises what XLA says
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"--topology={self.text}: {line}; use a size that the cloud offers, such as 4x4 or 8x8") from error


def parse(text: str | None) -> Topology:
    """Return the topology that `text` names; None: all devices of this machine. Raises UserError for another text."""
    import jax

    name, _, size = (text or "local").partition(":")
    if name == "local":
        if not re.fullmatch(r"[1-9]\d*|", size):
            raise UserError(f"--topology={text}: local: must be followed by a number of devices, such as local:2")
        found = jax.devices()
        if size and int(size) > len(found):
            raise UserError(f"--topology={text}: this machine has only {len(found)}")
        count = int(size or len(found))
        return Topology(f"local:{count}", Target(found[0].platform, found[0].device_kind, count))
    if name in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        return Topology(f"{name}:{size}", Target("tpu", TPUS[name], math.prod(map(int, size.split("x")))))
    if name in GPUS and re.fullmatch(r"[1-9]\d*", size):
        return Topology(f"{name}:{size}", Target("gpu", GPUS[name], int(size)))
    raise UserError(f"--topology={text}: must have the form of {SPELLINGS}")


def set_up(text: str | None) -> None:
    """Configure JAX for a plan before it creates its backend: the CPU compiles for devices that are not present."""
    import jax

    name, _, size = (text or "local").partition(":")
    if name != "local":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
        if name in GPUS:
            os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
            flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"  # both would run on the card
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        if name != "local" or size.isdigit():
            jax.config.update("jax_num_cpu_devices", int(size) if name == "local" else 1)


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
    """Lower cuDNN attention without cuDNN: answer JAX's checks of its version and of the GPU as for an H100."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    names = ("check_cudnn_version", "check_compute_capability", "is_cuda_compute_capability_equal")
    before = {name: getattr(fused, name) for name in names}
    answers = (lambda: 91200, lambda least: float(least) <= 9.0, lambda one: one == "9.0")
    for name, answer in zip(names, answers, strict=True):
        setattr(fused, name, answer)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(fused, name, function)
