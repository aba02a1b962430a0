"""Checks for one H100 in 12 minutes: correct losses, speed beside compiled PyTorch, replicas, two short trainings.

    python experiments/throughput/gpu.py            # parts in order of importance; parts without time left are skipped
    python experiments/throughput/gpu.py --tiny     # the same parts at a size for any CPU, to test the script
    python experiments/throughput/gpu.py --store    # on a CPU: store the losses that the part `numbers` compares with

Each part runs in a separate process and writes experiments/throughput/gpu/PART.json when it is done, with the device's
name. Needs jax[cuda]; `gpt2` and `mae_l` torch with CUDA and transformers; `cifar10` tensorflow_datasets and its data set.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import measure  # noqa: E402
import shapes  # noqa: E402

STORED = HERE / "losses_cpu.json"
STEPS = 5  # in `numbers`
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, of a loss after at most STEPS steps
REPLICAS = 8
FAMILIES = ("GPT-2 124M, T=1024", "MAE ViT-L/16, 224", "BERT-base, T=128", "CLIP ViT-B/16")  # of `numbers`
SPEED = ("GPT-2 124M, T=1024", "MAE ViT-L/16, 224")
STARTUP = 60  # seconds of a training besides its steps: starting, compiling, evaluating
REHEARSAL = {"data.batch_size": "4", "model.depth": "1", "training.evaluate_every": "None", "optimizer.warmup": "10 %"}


def losses(dtype: str) -> dict[str, list[float]]:
    """Return the losses of the first steps of each family's small shape, with f32 matmuls in full precision."""
    import jax
    import numpy as np

    from ssl_jax.training.program import Program
    from ssl_jax.training.settings import MeshSettings

    found = {}
    for name in FAMILIES:
        shape = shapes.gpu(tiny=True)[name]
        shape.config.training.dtype = dtype
        with jax.default_matmul_precision("highest"):
            parts = shapes.prepare(shape)
            program = Program(
                parts.task, parts.stream, training=parts.training, optimizer=parts.optimizer, mesh=MeshSettings(data=1)
            )
            state = program.create(program.hyper(batch_size=4, seed=0, total_steps=100, warmup_steps=0, cooldown_steps=0))
            resident = jax.device_put(parts.stream.resident)
            step, values = program.compiled(1, resident), []
            for i in range(STEPS):
                state, metrics = step(state, program.put(parts.stream.host_batch(i), 1), resident)
                values.append(float(np.asarray(metrics["loss"])))
        found[name] = values
    return found


def numbers(tiny: bool) -> dict[str, Any]:
    """Compare losses in f32 and bf16 with those stored from a CPU in f32."""
    stored, found = json.loads(STORED.read_text())["losses"], {}
    for dtype, tolerance in TOLERANCE.items():
        apart = {}
        for name, values in losses(dtype).items():
            apart[name] = max(abs(a - b) / abs(b) for a, b in zip(values, stored[name], strict=True))
        found[dtype] = {"relative_difference": apart, "tolerance": tolerance, "right": max(apart.values()) <= tolerance}
    return found


def speed(tiny: bool, name: str) -> dict[str, Any]:
    """Time one shape and compiled PyTorch alternately (`measure.one`)."""
    options = argparse.Namespace(attention=None, no_peer=False, steps=2 if tiny else None)
    return measure.one(shapes.gpu(tiny=tiny)[name], options)


def replicas(tiny: bool) -> dict[str, Any]:
    """Time a step of one small run and of eight in one program."""
    import jax
    import numpy as np

    from ssl_jax.training.program import Program
    from ssl_jax.training.replicas import Replica, ReplicaProgram
    from ssl_jax.training.settings import MeshSettings

    small = dict(width=32, depth=1, heads=2) if tiny else dict(width=128, depth=4, heads=4)
    decoder = dict(width=16 if tiny else 64, depth=1, heads=2)
    shape = shapes.masked_image(small, size=28, patch=7, batch=4 if tiny else 64, dtype="float32", decoder=decoder, channels=1)
    parts = shapes.prepare(shape)
    one = Program(parts.task, parts.stream, training=parts.training, optimizer=parts.optimizer, mesh=MeshSettings(data=1))
    many = ReplicaProgram(one, REPLICAS)
    resident, batch = jax.device_put(parts.stream.resident), parts.stream.host_batch(0)
    hyper = one.hyper(batch_size=4, seed=0, total_steps=1000, warmup_steps=0, cooldown_steps=0)
    stacked = many.hyper_of([Replica(seed=k, stream=parts.stream) for k in range(REPLICAS)], 1000)
    states = [one.create(hyper), many.create(stacked, [None] * REPLICAS, [None] * REPLICAS)]
    batches = [one.put(batch, 1), many.put({name: np.stack([x] * REPLICAS) for name, x in batch.items()}, 1)]
    steps = [one.compiled(1, resident), many.compiled(1, resident)]
    times: list[list[float]] = [[], []]
    for _ in range(5):
        for i in range(2):
            count = 2 if tiny else 100
            started = time.perf_counter()
            for _ in range(count):
                states[i], metrics = steps[i](states[i], batches[i], resident)
            jax.block_until_ready(metrics)
            times[i].append((time.perf_counter() - started) / count)
    single, together = (float(np.median(values[1:])) for values in times)
    return {"replicas": REPLICAS, "one_ms": 1e3 * single, "together_ms": 1e3 * together, "ratio": together / single}


def trained(config: str, *overrides: str, images: tuple[int, ...] | None = None) -> Callable[[bool, float], dict[str, Any]]:
    """Return a part that trains a config for the remaining time and returns its results.

    images: shape of an image of a data set that is not bundled; the rehearsal trains on random images.
    """

    def part(tiny: bool, seconds: float) -> dict[str, Any]:
        import tempfile

        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            minutes = 0.05 if tiny else max((seconds - STARTUP) / 60, 0.25)
            small: list[str] = []
            if tiny:
                small = [f"--config.{key}={value}" for key, value in REHEARSAL.items()]
                small += random_images(folder, images) if images else []
            command = [sys.executable, "-m", "ssl_jax.cli", "run", f"--config={HERE.parents[1] / config}",
                       f"--workdir={folder / 'run'}", f"--config.training.duration={minutes:.2f} minutes", *overrides,
                       *small]  # fmt: skip
            try:  # ends before this process is killed, or it would remain on the device
                done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds - 10, 20))
            except subprocess.TimeoutExpired:
                return {"error": f"took more than {seconds:.0f} s"}
            if done.returncode:
                return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
            results = json.loads((folder / "run" / "results.json").read_text())
            return {"config": config, "overrides": overrides, "minutes": minutes, "results": results}

    return part


def random_images(folder: pathlib.Path, shape: tuple[int, ...]) -> list[str]:
    """Write a training and a test split of random images; return the overrides that name them."""
    import numpy as np

    generator = np.random.default_rng(0)
    found = []
    for split, count in (("train", 64), ("test", 32)):
        file = folder / f"{split}.npz"
        np.savez(file, image=generator.integers(0, 256, (count, *shape), np.uint8), label=np.arange(count) % 10)
        found.append(f"--config.data.{split}=npz:{file}")
    return found


# Name -> (the part, its limit in seconds or as a share of the time left by the parts before it).
PARTS: Mapping[str, tuple[Callable[..., dict[str, Any]], float]] = {
    "numbers": (lambda tiny, seconds: numbers(tiny), 120),
    "gpt2": (lambda tiny, seconds: speed(tiny, SPEED[0]), 180),
    "mae_l": (lambda tiny, seconds: speed(tiny, SPEED[1]), 180),
    "replicas": (lambda tiny, seconds: replicas(tiny), 60),
    "nanogpt": (trained("configs/gpt/shakespeare_char.py"), 0.5),
    "cifar10": (
        trained("configs/mae/cifar10.py", "--config.optimizer.warmup=10 %", "--config.downstream.finetune=None",
                images=(32, 32, 3)), 1.0,
    ),
}  # fmt: skip


def seconds_of(name: str, left: float, tiny: bool) -> float:
    """Return how long a part may take of the `left` seconds; a rehearsal's parts have no limit of their own."""
    limit = PARTS[name][1]
    return left if tiny else limit * left if limit <= 1 else min(limit, left)


def device() -> str:
    import jax

    return f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small models of the same form, to test the script")
    parser.add_argument("--store", action="store_true", help="store the losses that `numbers` compares with")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts together")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--to", type=pathlib.Path, default=HERE / "gpu", help="the folder of the parts' JSON files")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.store:
        STORED.write_text(json.dumps({"device": device(), "losses": losses("float32")}, indent=1) + "\n")
        return
    arguments.to.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        found = PARTS[arguments.part][0](arguments.tiny, arguments.seconds)
        (arguments.to / f"{arguments.part}.json").write_text(json.dumps({"device": device(), **found}, indent=1) + "\n")
        return
    end = time.monotonic() + 60 * arguments.minutes
    for name in arguments.only:
        left = end - time.monotonic()
        print(f"{name}: {run(name, seconds_of(name, left, arguments.tiny), arguments)}", flush=True)


def run(name: str, seconds: float, arguments: argparse.Namespace) -> str:
    """Run one part in a child process; if it has no result, record why."""
    file = arguments.to / f"{name}.json"
    file.unlink(missing_ok=True)
    error = "no time left"
    if seconds >= 30:
        command = [sys.executable, __file__, "--part", name, "--seconds", str(seconds), "--to", str(arguments.to)]
        try:
            done = subprocess.run(command + ["--tiny"] * arguments.tiny, timeout=seconds, stderr=subprocess.PIPE, text=True)
            error = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            error = f"took more than {seconds:.0f} s"
    if not file.exists():
        file.write_text(json.dumps({"error": error}) + "\n")
    return file.read_text().replace("\n", " ")[:200]


if __name__ == "__main__":
    main()
