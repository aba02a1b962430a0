"""A sweep as an array of SLURM jobs: each runs the sweep's own command on its share of the programs."""

import pathlib
import shlex
import subprocess

from ssl_jax.errors import UserError

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --output={folder}/slurm-%A-%a.log
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
{options}
# SLURM sends SIGTERM two minutes before it ends a job; the sweep saves, and continues when the job is queued again.
exec {command} --shard="$SLURM_ARRAY_TASK_ID/{jobs}"
"""


def script(command: list[str], folder: pathlib.Path, jobs: int, options: str = "") -> str:
    """Return the text of a batch script for `jobs` jobs; `options`: additional options of sbatch, separated by blanks."""
    lines = "".join(f"#SBATCH {word}\n" for word in shlex.split(options))
    quoted = shlex.join(command)
    return SCRIPT.format(name=folder.name, last=jobs - 1, folder=folder, options=lines, command=quoted, jobs=jobs)


def submit(text: str, folder: pathlib.Path) -> str:
    """Write the script into the sweep's folder and submit it with sbatch; return sbatch's output."""
    file = folder / "slurm.sh"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    try:
        done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(
            f"--submit=slurm: sbatch is not installed here; submit {file}, which was written, on a machine that has it"
        ) from None
    if done.returncode:
        raise UserError(f"--submit=slurm: sbatch {file}: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout.strip()
