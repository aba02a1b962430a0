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
PROBE = "dict(linear_probe=dict(l2=(1e-4, 1e-5, 1e-6), baselines=False))"
CASES = {  # name -> config, overrides
    "mae/fashion_mnist.py": {"training.duration": "300 steps", "downstream": PROBE},
    "gpt/shakespeare_char_cpu.py": {"training.duration": "500 steps"},
}
EXPERIMENT = """from ssl_jax.experiments import Arm
def get_experiment():
    return dict(config={config!r}, arms=(Arm("base"),), seeds=range({seeds}), columns={{{metric!r}: "result"}})
"""
METRICS = {"mae/fashion_mnist.py": "linear_probe/accuracy", "gpt/shakespeare_char_cpu.py": "next_token/loss"}


def command(name: str, *arguments: str, steps: str | None = None) -> float:
    """Run `ssl-jax` with the case's overrides and return its seconds."""
    overrides = CASES[name] | ({"training.duration": steps} if steps else {})
    words = [sys.executable, "-m", "ssl_jax.cli", *arguments, *(f"--config.{key}={value}" for key, value in overrides.items())]
    begun = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-800:]}")
    return time.perf_counter() - begun


def single(name: str, workdir: pathlib.Path, seed: int, **options) -> float:
    return command(
        name, "run", f"--config={ROOT / 'configs' / name}", f"--config.seed={seed}", f"--workdir={workdir}", **options
    )


def sweep(name: str, folder: pathlib.Path, seeds: int, **options) -> float:
    experiment = folder.with_suffix(".py")
    experiment.write_text(EXPERIMENT.format(config=str(ROOT / "configs" / name), seeds=seeds, metric=METRICS[name]))
    return command(name, "sweep", f"--experiment={experiment}", f"--workdir={folder}", **options)


def parts(workdirs: list[pathlib.Path]) -> dict[str, float]:
    """Return the runs' own seconds of training and of evaluation, summed."""
    timings = [json.loads((workdir / "timings.json").read_text()) for workdir in workdirs]
    training = sum(t["training"] for t in timings)
    return {"training": training, "evaluation": sum(sum(t.values()) for t in timings) - training}


def results(workdirs: list[pathlib.Path], metric: str) -> list[float]:
    return [json.loads((workdir / "results.json").read_text())[metric] for workdir in workdirs]


def measured(name: str, seeds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        single(name, root / "warm", 0, steps="20 steps")
        sweep(name, root / "warm_sweep", 2, steps="20 steps")
        alone = [root / f"seed{seed}" for seed in range(seeds)]
        seconds = [single(name, alone[seed], seed) for seed in range(seeds // 2)]
        together = sweep(name, root / "sweep", seeds)
        seconds += [single(name, alone[seed], seed) for seed in range(seeds // 2, seeds)]
        swept = [root / "sweep" / "base" / f"seed{seed}" for seed in range(seeds)]
        return {
            "singles": {"seconds": sum(seconds), "each": seconds, **parts(alone), "results": results(alone, METRICS[name])},
            "sweep": {"seconds": together, **parts(swept), "results": results(swept, METRICS[name])},
            "share": together / sum(seconds),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=pathlib.Path, default=HERE / "replicas.json")
    arguments = parser.parse_args()
    found, rows = {}, []
    for name in CASES:
        found[name] = case = measured(name, arguments.seeds)
        for form in ("singles", "sweep"):
            spent = case[form]
            rest = spent["seconds"] - spent["training"] - spent["evaluation"]
            share = "" if form == "singles" else f"{case['share']:.2f}"
            rows.append([name, f"{arguments.seeds} commands" if form == "singles" else "one sweep", f"{spent['seconds']:.0f}",
                         f"{spent['training']:.0f}", f"{spent['evaluation']:.0f}", f"{rest:.0f}", share])  # fmt: skip
        print(rows[-2], rows[-1], sep="\n", flush=True)
        arguments.json.write_text(
            json.dumps({"host": devices.processor(), "cores": devices.cores(), "configs": found}, indent=1)
        )
    text = f"{devices.cores()} cores, {devices.processor()}; {arguments.seeds} seeds, seconds.\n\n"
    text += markdown(["config", "form", "in all", "training", "evaluation", "start, data, programs", "share"], rows)
    print(text)
    if arguments.json == parser.get_default("json"):
        measure.into_readme("replicas", text)


if __name__ == "__main__":
    main()
