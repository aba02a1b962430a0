"""Measure shapes one after another, each in a separate process, and write one JSON file and one table.

Shared by cpu.py and gpu.py. A failure is recorded with its reason, and the other shapes continue.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

HERE = pathlib.Path(__file__).parent


def main(script: str, shapes: Callable[..., Mapping[str, Any]], out: pathlib.Path, argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=f"times the shapes of {pathlib.Path(script).name} beside PyTorch")
    parser.add_argument("--json", type=pathlib.Path, default=out)
    parser.add_argument("--steps", type=int, help="steps per block; default: two seconds' worth")
    parser.add_argument("--only", nargs="*", default=[], help="names of shapes, or parts of them")
    parser.add_argument("--skip", nargs="*", default=[], help="names of shapes, or parts of them, to skip")
    parser.add_argument("--attention", default=None, help="the attention kernel of every model")
    parser.add_argument("--no_peer", action="store_true", help="only ours")
    parser.add_argument("--tiny", action="store_true", help="small models of the same form, to test the script")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one shape")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    options = dict(tiny=True) if arguments.tiny else {}
    if arguments.one:
        arguments.json.write_text(json.dumps(one(shapes(**options)[arguments.one], arguments)))
        return
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in shapes(**options):
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        if any(part in name for part in arguments.skip):
            continue
        found[name] = _child(script, name, arguments)
        print(f"{name}: {found[name].get('error') or summary(found[name])}", flush=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    if not arguments.tiny and arguments.json.resolve().parent == HERE.resolve():
        into_readme(arguments.json.stem, f"{machine(found)}\n\n{table(found)}")


def machine(found: Mapping[str, Any]) -> str:
    """Return the hardware and versions of the measurement, and the failures."""
    good = [value for value in found.values() if "error" not in value]
    where = "nothing measured"
    if good:
        device = good[0]["device"]
        kind = f"{device['cores']} cores, {device['host']}" if device["platform"] == "cpu" else device["kind"]
        where = f"{kind}, JAX {good[0]['versions']['jax']}"
    about = next((a for value in good if "peer" in value for a in value["peer"]["about"].values()), {})
    where += f", PyTorch {about['torch']}, transformers {about['transformers']}" if "torch" in about else ""
    failed = "".join(f"\n\nNot measured: {name}: {value['error']}" for name, value in found.items() if "error" in value)
    return f"{where}.{failed}"


def into_readme(name: str, text: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->` in README.md, if it has these marks."""
    readme = HERE / "README.md"
    before, start, rest = readme.read_text().partition(f"<!-- {name} -->")
    after = rest.partition(f"<!-- /{name} -->")[2]
    if start:
        readme.write_text(f"{before}<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->{after}")


def one(shape: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one shape in this process."""
    sys.path.insert(0, str(HERE))
    import shapes as forms
    from ml_collections import ConfigDict

    from ssl_jax import bench, bench_peer

    config = shape if isinstance(shape, ConfigDict) else shape.config
    if arguments.attention:
        for section in [config.model[tower] for tower in ("image", "text") if tower in config.model] or [config.model]:
            section.attention = arguments.attention
    parts = forms.prepare(shape)
    spec = None if arguments.no_peer else bench_peer.reference(parts.task, config)
    found = bench.measure(parts, steps=arguments.steps, spec=spec, name=config.task.name)
    return found | {"attention": arguments.attention or "auto"}


def _child(script: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "one.json"
        command = [sys.executable, script, "--one", name, "--json", str(out)]
        for key in ("steps", "attention"):
            if getattr(arguments, key) is not None:
                command += [f"--{key}", str(getattr(arguments, key))]
        command += [f"--{key}" for key in ("no_peer", "tiny") if getattr(arguments, key)]
        said = ["python", f"experiments/throughput/{pathlib.Path(script).name}", "--only", f"'{name}'", *command[6:]]
        try:
            done = subprocess.run(command, timeout=arguments.timeout, stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {arguments.timeout} s"}
        if not out.exists():
            return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
        return json.loads(out.read_text()) | {"command": " ".join(said)}


def summary(found: Mapping[str, Any]) -> str:
    ratio = f", {found['peer']['ratio']:.2f} x {found['peer']['faster']}" if "peer" in found else ""
    return f"{found['step_ms']['median']:.2f} ms, {found['examples_per_s']:,.0f} examples/s{ratio}"


def table(found: Mapping[str, Any]) -> str:
    from ssl_jax import bench

    return bench.table([(name, value) for name, value in found.items() if "error" not in value])
