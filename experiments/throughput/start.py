"""The time from a run's command to its first step: with an empty compilation cache, and with the cache of that run.

    python experiments/throughput/start.py

Writes experiments/throughput/start.json. The first step is done when its metrics are in metrics.jsonl.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import measure  # noqa: E402

from ssl_jax import devices  # noqa: E402
from ssl_jax.reports.tables import markdown  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ("mae/fashion_mnist.py", "gpt/shakespeare_char_cpu.py", "bert/shakespeare_cpu.py", "clip/emoji_cpu.py")


def start(config: str, cache: pathlib.Path) -> float:
    """Return the seconds from the command to the first step's metrics."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "ssl_jax.cli", "pretrain", f"--config={ROOT / 'configs' / config}",
                   f"--workdir={workdir}/run", "--config.training.log_every=1"]  # fmt: skip
        metrics, begun = pathlib.Path(workdir) / "run" / "metrics.jsonl", time.perf_counter()
        with tempfile.TemporaryFile("w+") as said:
            environment = {**os.environ, "SSL_JAX_CACHE": str(cache)}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python caches its bytecode, as by default
            run = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
            try:
                while not (metrics.exists() and metrics.stat().st_size):
                    if run.poll() is not None:
                        said.seek(0)
                        raise SystemExit(f"{config}: the run ended before its first step: {said.read().strip()}")
                    time.sleep(0.01)
                return time.perf_counter() - begun
            finally:
                run.kill()
                run.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path(__file__).with_name("start.json"))
    arguments = parser.parse_args()
    found = {}
    for config in CONFIGS:
        firsts, seconds = [], []
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory() as cache:
                firsts.append(start(config, pathlib.Path(cache)))
                seconds.append(start(config, pathlib.Path(cache)))
        share = float(np.median([b / a for a, b in zip(firsts, seconds, strict=True)]))
        found[config] = {"first_s": firsts, "second_s": seconds, "share": share}
    body = [
        [name, f"{np.median(value['first_s']):.1f}", f"{np.median(value['second_s']):.1f}", f"{value['share']:.2f}"]
        for name, value in found.items()
    ]
    text = f"{devices.cores()} cores, {devices.processor()}, medians of {arguments.repeats}.\n\n"
    text += markdown(["config", "first start, s", "second start, s", "share"], body)
    print(text)
    arguments.json.write_text(
        json.dumps({"cores": devices.cores(), "host": devices.processor(), "configs": found}, indent=1) + "\n"
    )
    if arguments.json == parser.get_default("json"):
        measure.into_readme("start", text)


if __name__ == "__main__":
    main()
