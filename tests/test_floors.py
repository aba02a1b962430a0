"""Imports only go down the floors, files stay readable, and heavy libraries are imported only where a command needs them."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "ssl_jax"
FLOORS = (
    {
        "errors", "cache", "streams", "signals", "randomness", "task", "config", "experiments", "devices", "target",
        "partition", "cpu",
    },
    {"data", "models", "reports", "workdir"},
    {"training", "pretext", "initialisation"},
    {"downstream", "interop"},
    {
        "resume", "validation", "evidence", "overview", "plan", "runs", "stand_in", "sweeps", "planning", "slurm", "inference",
        "predictions", "preview", "bench", "bench_peer", "api", "start",
    },
    {"cli", "__main__"},
)  # fmt: skip
# Settings of a section may be read by the room itself; what a pretext task is, training must not know, and so on.
FORBIDDEN = {"training": {"pretext"}, "models": {"data", "reports", "workdir"}, "data": {"models", "reports", "workdir"}}


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: pathlib.Path) -> set[str]:
    """The rooms of ours that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "ssl_jax" else [f"ssl_jax.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ssl_jax.")}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(path) - {room}:
        assert floor(other) <= floor(room), f"{room} imports {other}, a floor above"
        assert other not in FORBIDDEN.get(room, set()), f"{room} must not know {other}"


def test_no_file_is_longer_than_can_be_read():
    files = [p for folder in ("ssl_jax", "tests", "configs", "experiments") for p in (PACKAGE.parent / folder).rglob("*.py")]
    lengths = {str(p.relative_to(PACKAGE.parent)): len(p.read_text().splitlines()) for p in files}
    assert not {name: n for name, n in lengths.items() if n > 600}
    assert lengths["ssl_jax/training/loop.py"] < 250 and lengths["ssl_jax/task.py"] < 200
    assert not {name: n for name, n in lengths.items() if n >= 200 and "/pretext/" in name and name.startswith("ssl_jax")}


def test_help_loads_nothing_heavy():
    """`ssl-jax --help` answers in well under a second because JAX is not imported."""
    code = "import sys; from ssl_jax import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += (
        "heavy = {'jax', 'numpy', 'flax', 'orbax', 'matplotlib', 'grain', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_grain_is_imported_before_a_thread_reads_batches():
    """While grain is imported, etils replaces `builtins.__import__`: the import of another thread then gets an object that
    is no module, and now and then a run died in `jax.lax` when the prefetching thread imported grain."""
    code = "import sys; from ssl_jax.training import loop; from ssl_jax.data import pipeline; assert 'grain' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
