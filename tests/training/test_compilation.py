"""What surrounds compiled programs on a CPU."""

import platform

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_large_block_is_not_handed_back_to_the_kernel(child):
    """Once told to keep memory, a process that frees 64 MiB and takes them again faults no page in anew."""
    code = """
import ctypes, resource
from ssl_jax.cpu import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        block = libc.malloc(2**26)
        ctypes.memset(block, 1, 2**26)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
faults()
print(before, faults())
"""
    before, after = map(int, child(code).split())
    assert before > 10_000 > 1_000 > after


def test_a_step_inside_a_loop_over_steps_copies_no_parameters():
    """Of a program of two steps no instruction copies a matrix of the model: the loop updates its state in place.

    The metric of the update's norm reads the old parameters; computed a second time for it, the update would keep them alive
    beyond the new ones, and XLA would copy them all in every step.
    """
    import re

    import jax

    from ssl_jax import config as configs
    from ssl_jax import runs

    changes = {"model.width": "24", "model.heads": "2", "model.depth": "1", "training.steps_per_call": "2"}
    trainer = runs.trainer_of(runs.prepare(configs.load("configs/gpt/shakespeare_char_cpu.py", changes)))
    program = trainer.compiled(2, trainer.stream.resident).as_text()
    trained = {",".join(map(str, x.shape)) for x in jax.tree.leaves(trainer._abstract.params) if x.ndim == 2}
    copied = [line.strip()[:100] for line in program.splitlines() if re.search(r" copy\(", line) and "op_name" not in line]
    shapes = [re.search(r"f32\[([\d,]+)\]", line) for line in copied]
    assert trained and not [shape[0] for shape in shapes if shape and shape[1] in trained]
