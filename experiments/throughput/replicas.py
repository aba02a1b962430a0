"""Eight seeds as one sweep, beside eight single commands: the whole cost on the clock, through the installed command.

    python experiments/throughput/replicas.py

By turns: half of the single commands, the sweep of all seeds, the other half. Runs are shortened, so start, compilation and
evaluation weigh more than in a full run. Training and evaluation are sums over the runs' timings.json, where runs that were
trained together share their time equally; the rest of the clock is start, data and compilation. All commands share one warm
compilation cache: each form runs once, briefly, before it is measured. Writes replicas.json and a table in the README.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import measure  # noqa: E402

from ssl_jax import devices  # noqa: E402
from ssl_jax.reports.tables import markdown  # noqa: E402

ROOT, HERE = pathlib.Path(__file__).parents[2], pathlib.Path(__file__).parent
CASES = {  # config -> steps, the metric that is compared, whether a linear probe is the only evaluator
    "mae/fashion_mnist.py": ("300 steps", "linear_probe/accuracy", True),
    "gpt/shakespeare_char_cpu.py": ("500 steps", "next_token/loss", False),
}
CONFIG = """import runpy
def get_config():
    config = runpy.run_path({base!r})["get_config"]()
    if {probe}:
        config.downstream = dict(linear_probe=dict(l2=(1e-4, 1e-5, 1e-6), baselines=False))
    return config
"""
EXPERIMENT = """from ssl_jax.experiments import Arm
def get_experiment():
    return dict(config={config!r}, arms=(Arm("base"),), seeds={seeds}, columns={{{metric!r}: "result"}})
"""


def command(*words: str) -> float:
    """Run `ssl-jax` and return its seconds."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ssl_jax.cli", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ssl-jax {' '.join(words)}: {(done.stderr or done.stdout).strip()[-800:]}")
    return time.perf_counter() - begun


def single(config: pathlib.Path, workdir: pathlib.Path, seed: int, steps: str) -> float:
    return command("run", f"--config={config}", f"--config.seed={seed}", f"--config.training.duration={steps}",
                   f"--workdir={workdir}")  # fmt: skip


def sweep(config: pathlib.Path, folder: pathlib.Path, seeds: int, steps: str, metric: str) -> float:
    experiment = folder.with_suffix(".py")
    experiment.write_text(EXPERIMENT.format(config=str(config), seeds=seeds, metric=metric))
    return command("sweep", f"--experiment={experiment}", f"--config.training.duration={steps}", f"--workdir={folder}")


def parts(workdirs: list[pathlib.Path]) -> dict[str, float]:
    """Return the runs' own seconds of training and of evaluation, summed."""
    timings = [json.loads((workdir / "timings.json").read_text()) for workdir in workdirs]
    training = sum(t["training"] for t in timings)
    return {"training": training, "evaluation": sum(sum(t.values()) for t in timings) - training}


def results(workdirs: list[pathlib.Path], metric: str) -> list[float]:
    return [json.loads((workdir / "results.json").read_text())[metric] for workdir in workdirs]


def measured(name: str, seeds: int) -> dict:
    steps, metric, probe = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        config = root / "config.py"
        config.write_text(CONFIG.format(base=str(ROOT / "configs" / name), probe=probe))
        single(config, root / "warm", 0, "120 steps")
        sweep(config, root / "warm_sweep", 2, "120 steps", metric)
        alone = [root / f"seed{seed}" for seed in range(seeds)]
        seconds = [single(config, alone[seed], seed, steps) for seed in range(seeds // 2)]
        together = sweep(config, root / "sweep", seeds, steps, metric)
        seconds += [single(config, alone[seed], seed, steps) for seed in range(seeds // 2, seeds)]
        swept = [root / "sweep" / "base" / f"seed{seed}" for seed in range(seeds)]
        return {
            "singles": {"seconds": sum(seconds), "each": seconds, **parts(alone), "results": results(alone, metric)},
            "sweep": {"seconds": together, **parts(swept), "results": results(swept, metric)},
            "share": together / sum(seconds),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=pathlib.Path, default=HERE / "replicas.json")
    parser.add_argument("--only", choices=CASES, help="measure one config, and keep the numbers of the others")
    arguments = parser.parse_args()
    stored, rows = json.loads(arguments.json.read_text()) if arguments.only else {}, []
    found = stored.get("configs", {})
    for name in CASES:
        if arguments.only in (None, name):
            found[name] = measured(name, arguments.seeds)
        case = found[name]
        for form in ("singles", "sweep"):
            spent = case[form]
            rest = spent["seconds"] - spent["training"] - spent["evaluation"]
            share = "" if form == "singles" else f"{case['share']:.2f}"
            rows.append([name, f"{arguments.seeds} commands" if form == "singles" else "one sweep", f"{spent['seconds']:.0f}",
                         f"{spent['training']:.0f}", f"{spent['evaluation']:.0f}", f"{rest:.0f}", share])  # fmt: skip
        print(rows[-2], rows[-1], sep="\n", flush=True)
        machine = {"host": devices.processor(), "cores": devices.cores()}
        arguments.json.write_text(json.dumps(machine | {"configs": found}, indent=1) + "\n")
    text = f"{devices.cores()} cores, {devices.processor()}; {arguments.seeds} seeds, seconds.\n\n"
    text += markdown(["config", "form", "in all", "training", "evaluation", "start, data, programs", "share"], rows)
    print(text)
    if arguments.json == parser.get_default("json"):
        measure.into_readme("replicas", text)


if __name__ == "__main__":
    main()
