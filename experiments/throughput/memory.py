"""Compare the memory that `ssl-jax plan --topology=local:1` predicts for a config with that of its steps on this CPU.

    python experiments/throughput/memory.py configs/mae/fashion_mnist.py --config.data.batch_size=256

It measures the growth of the process's peak resident memory over five steps, without compilation. The data are random and have
the config's shapes, as in the plan. Large blocks of memory are returned to the kernel once they are freed, so that the peak is
memory in use. A run retains them (`ssl_jax.cpu.keep_freed_memory`): its resident memory may hold a step's temporaries twice.
"""

import ctypes
import gc
import pathlib
import sys


def resident(what: str) -> int:
    """Return this process's resident memory in bytes: "VmRSS" current, "VmHWM" peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def return_freed_memory() -> None:
    """Undo `cpu.keep_freed_memory`: make each block of over 1 MiB a mapping of its own."""
    mmap_threshold, trim_threshold = -3, -1  # names of mallopt(3)
    for name in (mmap_threshold, trim_threshold):
        ctypes.CDLL(None).mallopt(name, 2**20)


def main(arguments: list[str]) -> tuple[int, int]:
    """Print and return (predicted, measured) bytes."""
    from ssl_jax.plan import topology

    topology.set_up("local:1")
    import jax

    from ssl_jax import config as configs
    from ssl_jax.cli import take_overrides
    from ssl_jax.plan import compiled
    from ssl_jax.start import start_process

    start_process()
    return_freed_memory()
    overrides, files = take_overrides(arguments)
    here = topology.parse("local:1")
    parts, program = compiled.program_of(configs.load(files[0], overrides["config"]), here)
    predicted = compiled.compile_step(program, here).memory.peak
    step = program.compiled(1, parts.stream.resident)
    hyper = program.hyper(batch_size=parts.stream.batch_size, seed=0, total_steps=100, warmup_steps=0, cooldown_steps=0)
    batch = parts.stream.host_batch(0)
    state = program.create(hyper)  # compiles a separate program, whose memory is not part of a step's
    jax.block_until_ready(state)
    gc.collect()
    before = resident("VmRSS") - sum(x.nbytes for x in jax.tree.leaves(state))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    for _ in range(5):
        state, metrics = step(state, program.put(batch, 1), parts.stream.resident)
        jax.block_until_ready(metrics)
    measured = resident("VmHWM") - before
    print(f"{files[0]}: predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    return predicted, measured


if __name__ == "__main__":
    main(sys.argv[1:])
