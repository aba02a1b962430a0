"""What surrounds compiled programs on a CPU."""

import platform

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_large_block_is_not_handed_back_to_the_kernel(child):
    """Once told to keep memory, a process that frees 64 MiB and takes them again faults no page in anew."""
    code = """
import ctypes, resource
from ssl_jax.training.compilation import keep_freed_memory

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
