"""The command line: parse, call, print. Exit status 0 on success, 2 for a user's mistake, 1 for an internal failure.

`plan` exits with 3 if a config does not fit into the devices' memory."""

import argparse
import contextlib
import errno
import os
import pathlib
import shlex
import sys
import traceback

from ssl_jax import streams
from ssl_jax.errors import UserError
from ssl_jax.training.exceptions import Stopped

OVERRIDES = ("config", "experiment", "data")  # --config.KEY=VALUE, --experiment.KEY=VALUE, --data.KEY=VALUE
NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # the user can fix these, wherever raised


def main(argv: list[str] | None = None) -> int:
    """Run one command; the console script `ssl-jax`."""
    streams.open_closed()
    try:
        status = run(argv)
    except Exception as error:
        if not _one_of_several():
            raise
        if "Gloo" in str(error):  # the error of a collective on a CPU when another process has ended
            print(f"ssl-jax: another process of this run has ended; its output says why ({error})", file=sys.stderr)
        else:
            traceback.print_exc()
        status = 1
    if status and _one_of_several():
        from ssl_jax.start import end_failed

        end_failed(status)
    return status


def _one_of_several() -> bool:
    """Return whether this process has joined others (every command that can join imports `start`)."""
    start = sys.modules.get("ssl_jax.start")
    return start is not None and start.joined()


def run(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; print a user's error as one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        overrides, rest = take_overrides(argv)
        arguments = parser().parse_args(rest)
        arguments.overrides, arguments.command_line = overrides, shlex.join(["ssl-jax", *argv])
        check_overrides(arguments)
        with streams.outlive_readers() if arguments.trains else contextlib.nullcontext():
            named = getattr(arguments, "config", None)
            arguments.settings = _load_config(named, overrides["config"]) if named else None
            if arguments.devices:
                from ssl_jax.start import start_process

                line = start_process()
                if arguments.trains:
                    print(f"devices: {line}", flush=True)
            return arguments.call(arguments) or 0
    except UserError as error:
        print(f"ssl-jax: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"ssl-jax: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, so an error message would have no reader either
        streams.silence()
        return 1
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise
        print(f"ssl-jax: {error.filename or 'a file'}: {error.strerror}; make room or change its permissions", file=sys.stderr)
        return 2


def take_overrides(argv: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Split `--config.KEY=VALUE` (or `--config.KEY VALUE`), and those of --experiment and --data, from other arguments."""
    overrides, rest, words = {name: {} for name in OVERRIDES}, [], iter(argv)
    for word in words:
        name, dot, key_value = word.removeprefix("--").partition(".")
        if not word.startswith("--") or not dot or name not in OVERRIDES:
            rest.append(word)
            continue
        key, equals, value = key_value.partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise UserError(f"{word}: a value is missing; write {word}=VALUE")
        overrides[name][key] = value
    return overrides, rest


def path(text: str) -> str:
    """Return a path from the command line, also in "hf:DIR", with `~` expanded (shells do not expand `--workdir=~/x`)."""
    scheme, rest = ("hf:", text[3:]) if text.startswith("hf:") else ("", text)
    if not rest.strip():
        raise argparse.ArgumentTypeError("is empty; expected a path")
    expanded = os.path.expanduser(rest)
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text}: there is no such home directory; write the whole path")
    return scheme + expanded


def check_overrides(arguments: argparse.Namespace) -> None:
    """Raise UserError for an override of a file that the command does not read or that was not given."""
    if arguments.command == "evaluate":  # of the run's own config, and of its data
        return
    for name, found in arguments.overrides.items():
        if name == "data" and found:
            raise UserError(f"{arguments.command} takes no --data.{next(iter(found))}")
        experiment = getattr(arguments, "experiment", None) is not None  # it names a config
        if found and not hasattr(arguments, name) and not experiment:
            raise UserError(f"{arguments.command} takes no --{name}.{next(iter(found))}")
        if found and getattr(arguments, name, None) is None and not experiment:
            raise UserError(f"--{name}.{next(iter(found))} needs --{name}=FILE")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="ssl-jax", description=__import__("ssl_jax").__doc__)
    top.add_argument("--version", action="version", version=__import__("ssl_jax").__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name, call, help, *, config=False, workdir=False, trains=False, devices=True):
        sub = commands.add_parser(name, help=help, description=help)
        if config:
            sub.add_argument(
                "--config",
                required=True,
                metavar="FILE[:ARG]",
                help="a config file, run as Python; --config.KEY=VALUE overrides a key",
            )
        if workdir:
            sub.add_argument("--workdir", required=True, type=path, metavar="DIR", help="the run's folder")
        sub.set_defaults(call=call, trains=trains, devices=devices)
        return sub

    command("run", _run, "pre-train, evaluate, fine-tune, report", config=True, workdir=True, trains=True)
    command("pretrain", _pretrain, "train only", config=True, workdir=True, trains=True)
    sub = command(
        "finetune", _finetune, "train a supervised task, from a pre-trained encoder with --init",
        config=True, workdir=True, trains=True,
    )  # fmt: skip
    sub.add_argument("--init", type=path, metavar="DIR", help="a work directory, DIR@STEP or hf:DIR to start from (task.init)")
    sub = command("evaluate", _evaluate, "run the config's evaluators over a checkpoint", workdir=True, trains=True)
    sub.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="evaluators of another config; default: the run's own, with --config.downstream.KEY=VALUE; "
        "--data.train=URI --data.test=URI measure on other data",
    )
    sub.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the newest")
    sub = command(
        "sweep", _sweep, "run the arms and seeds of an experiment, and write its table; a killed sweep continues",
        workdir=True, trains=True,
    )  # fmt: skip
    sub.add_argument(
        "--experiment",
        required=True,
        type=path,
        metavar="FILE",
        help="an experiment file, run as Python; --experiment.seeds=5 and --config.KEY=VALUE override",
    )
    sub.add_argument("--plan", action="store_true", help="print what would run, and stop")
    sub.add_argument(
        "--replicas", metavar="N", help="train N runs together; default: one per core, or as many as fit on the devices"
    )
    sub.add_argument("--shard", metavar="I/N", help="run every N-th group of runs, from the I-th on")
    sub.add_argument("--submit", choices=("slurm",), help="as an array of SLURM jobs; with --plan, print the batch script")
    sub.add_argument("--jobs", metavar="N", help="size of the array; default: one job per group of runs")
    sub.add_argument("--sbatch", metavar="OPTIONS", help='additional options of sbatch, such as "--gpus=1 --time=4:00:00"')
    sub = command(
        "report",
        _report,
        "write the page of a run, of a sweep, or of several runs side by side",
        devices=False,
    )
    sub.add_argument("workdirs", nargs="+", type=path, metavar="DIR")
    sub.add_argument("--to", type=path, metavar="DIR", help="where to write; default: the first run's folder")
    sub = command("reconstruct", _reconstruct, "fill in masked images, as a PNG", workdir=True)
    sub.add_argument("--images", metavar="URI", help="a source of images; default: the run's test data")
    sub.add_argument("--count", type=int, default=8, metavar="N")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--to", type=path, metavar="PNG", help="default: WORKDIR/reconstructions.png")
    sub = command("generate", _generate, "continue a text", workdir=True)
    sub.add_argument("--prompt", default="", help="the text to continue")
    sub.add_argument("--max_tokens", type=int, default=200)
    sub.add_argument("--temperature", type=float, default=0.8)
    sub.add_argument("--top_k", type=int, default=None)
    sub.add_argument("--top_p", type=float, default=None)
    sub.add_argument("--num_samples", type=int, default=1)
    sub.add_argument("--seed", type=int, default=0)
    sub = command("fill-mask", _fill_mask, "the most likely words for each [MASK]", workdir=True)
    sub.add_argument("--text", required=True)
    sub.add_argument("--top", type=int, default=5)
    sub = command("embed", _embed, "features of a source, as an npz file", workdir=True)
    sub.add_argument("--data", required=True, metavar="URI")
    sub.add_argument("--features", default="mean", metavar="NAME[,NAME]")
    sub.add_argument("--to", required=True, type=path, metavar="NPZ")
    sub = command("predict", _predict, "a supervised model's prediction for each example of a source, as a table", workdir=True)
    sub.add_argument("--data", required=True, metavar="URI")
    sub.add_argument("--to", required=True, type=path, metavar="FILE", help=".csv, .jsonl or .npz")
    sub = command("retrieve", _retrieve, "images for a text, or texts for an image", workdir=True)
    sub.add_argument("--text")
    sub.add_argument("--images", metavar="URI")
    sub.add_argument("--image", type=path, metavar="FILE")
    sub.add_argument("--texts", type=path, metavar="FILE", help="one caption per line")
    sub.add_argument("--top", type=int, default=12)
    sub.add_argument("--to", type=path, metavar="PNG", help="default: WORKDIR/retrieved.png")
    sub = command("convert", _convert, "import or export published weights")
    sub.add_argument("--from", dest="source", required=True, type=path, metavar="hf:DIR|WORKDIR|FILE.pth")
    sub.add_argument("--to", dest="target", required=True, type=path, metavar="WORKDIR|hf:DIR")
    sub = command(
        "bench", _bench, "step time, throughput and MFU; --peer beside the reference implementation", config=True, trains=True
    )
    sub.add_argument("--peer", action="store_true", help="alternate with the same model and batch in PyTorch")
    sub.add_argument("--steps", type=int, default=None, metavar="N")
    sub.add_argument("--json", type=path, metavar="OUT")
    sub = command(
        "plan", _plan, "memory, collectives, roofline and time of a run on devices that need not be present; exit status 3 if"
        " it does not fit", config=True, devices=False,
    )  # fmt: skip
    sub.add_argument("--topology", metavar="NAME", help="v5e:8x8, v5p:2x2x2, h100:8, local:2; default: this machine's devices")
    sub.add_argument("--json", action="store_true", help="print everything as JSON")
    sub.add_argument("--examples", type=int, metavar="N", help="training examples, for a duration in epochs")
    sub.add_argument("--analyse", action="store_true", help="estimate the memory within seconds, without compiling")
    sub = command("data", _data, "list, inspect or prepare data sources", devices=False)
    sub.add_argument("action", choices=("list", "inspect", "prepare"))
    sub.add_argument("uri", nargs="?")
    sub.add_argument("--index", type=int, default=None, help="inspect: this example only")
    sub.add_argument("--config", metavar="FILE[:ARG]", help="inspect: the training data of this config")
    sub.add_argument("--to", type=path, metavar="PNG", help="inspect: write images as the model of --config reads them")
    return top


# Each command imports its modules when it is called, so that --help and mistakes are answered at once --------------------


def _load_config(file, overrides):
    from ssl_jax import config

    return config.load(file, overrides)


def _origin(arguments):
    """Return the origin of the config, which a run records."""
    overrides = arguments.overrides["config"]
    return {"command": arguments.command_line, "config_file": arguments.config, "overrides": overrides}


def _run(arguments):
    from ssl_jax import runs

    return runs.run(arguments.settings, arguments.workdir, origin=_origin(arguments))


def _pretrain(arguments):
    from ssl_jax import runs

    return runs.pretrain(arguments.settings, arguments.workdir, origin=_origin(arguments))


def _finetune(arguments):
    from ssl_jax import runs

    return runs.finetune(arguments.settings, arguments.workdir, init=arguments.init, origin=_origin(arguments))


def _evaluate(arguments):
    from ssl_jax import runs

    overrides = arguments.overrides
    return runs.evaluate(
        arguments.workdir, config=arguments.settings, checkpoint=arguments.checkpoint, data=overrides["data"],
        overrides=overrides["config"],
    )  # fmt: skip


def _sweep(arguments):
    from ssl_jax import experiments, sweeps

    overrides = arguments.overrides
    experiment = experiments.load(arguments.experiment, settings=overrides["experiment"], overrides=overrides["config"])
    replicas = None if arguments.replicas is None else sweeps.parse_positive("--replicas", arguments.replicas)
    if arguments.submit:
        return _submit(arguments, experiment)
    for option in ("jobs", "sbatch"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} needs --submit=slurm")
    shard = sweeps.parse_shard(arguments.shard or "0/1")
    return sweeps.sweep(experiment, arguments.workdir, plan=arguments.plan, shard=shard, replicas=replicas)


def _submit(arguments, experiment):
    from ssl_jax import slurm, sweeps

    if arguments.shard:
        raise UserError("--submit=slurm: each job gets its own --shard; omit --shard")
    folder = pathlib.Path(arguments.workdir).absolute()
    groups = len(sweeps.grouped(sweeps.jobs_of(experiment, folder)))
    jobs = groups if arguments.jobs is None else min(groups, sweeps.parse_positive("--jobs", arguments.jobs))
    experiment_file = pathlib.Path(arguments.experiment).absolute()
    command = [sys.argv[0], "sweep", f"--experiment={experiment_file}", f"--workdir={folder}"]
    command += [f"--{kind}.{key}={value}" for kind, found in arguments.overrides.items() for key, value in found.items()]
    command += [] if arguments.replicas is None else [f"--replicas={arguments.replicas}"]
    text = slurm.script(command, folder, jobs, arguments.sbatch or "")
    if arguments.plan:
        sweeps.sweep(experiment, arguments.workdir, plan=True)
    print(text if arguments.plan else slurm.submit(text, folder))
    return 0


def _report(arguments):
    from ssl_jax import runs

    return runs.report(arguments.workdirs, to=arguments.to)


def _reconstruct(arguments):
    from ssl_jax import inference

    inference.reconstruct(
        arguments.workdir, images=arguments.images, count=arguments.count, seed=arguments.seed, to=arguments.to
    )


def _generate(arguments):
    from ssl_jax import inference

    names = ("prompt", "max_tokens", "temperature", "top_k", "top_p", "num_samples", "seed")
    inference.generate(arguments.workdir, **{name: getattr(arguments, name) for name in names})


def _fill_mask(arguments):
    from ssl_jax import inference

    inference.fill_mask(arguments.workdir, text=arguments.text, top=arguments.top)


def _embed(arguments):
    from ssl_jax import inference

    inference.embed(arguments.workdir, data=arguments.data, features=tuple(arguments.features.split(",")), to=arguments.to)


def _predict(arguments):
    from ssl_jax import predictions

    predictions.predict_source(arguments.workdir, data=arguments.data, to=arguments.to)


def _retrieve(arguments):
    from ssl_jax import inference

    names = ("text", "images", "image", "texts", "top", "to")
    inference.retrieve(arguments.workdir, **{name: getattr(arguments, name) for name in names})


def _convert(arguments):
    from ssl_jax.interop import convert

    checkpoint = None
    if arguments.target.startswith("hf:") and not arguments.source.startswith("hf:"):
        from ssl_jax import runs
        from ssl_jax.workdir import Workdir

        checkpoint = runs.selected_checkpoint(Workdir.existing(arguments.source))
    print(convert(arguments.source, arguments.target, checkpoint))


def _bench(arguments):
    from ssl_jax.bench import bench

    bench(arguments.settings, steps=arguments.steps, peer=arguments.peer, json_out=arguments.json)


def _plan(arguments):
    from ssl_jax import plan

    options = dict(as_json=arguments.json, examples=arguments.examples, analyse=arguments.analyse)
    return plan.main(arguments.settings, arguments.topology, **options)


def _data(arguments):
    from ssl_jax.data import commands

    if arguments.action == "list":
        print(commands.list_sources())
        return
    settings = getattr(arguments, "settings", None)
    uri = arguments.uri or (settings.data.get("train") if settings else None)
    if not uri:
        raise UserError(f"data {arguments.action} needs a source, such as bundled:fashion_mnist")
    if arguments.action == "prepare":
        print(commands.prepare(uri))
        return
    if arguments.to and not settings:
        raise UserError(f"--to={arguments.to}: needs --config=FILE, which says how images are augmented")
    options = {name: settings.data.get(name) for name in ("dir", "columns", "label_separator")} if settings else {}
    print(commands.inspect(uri, arguments.index, **options))
    if arguments.to:
        from ssl_jax.preview import preview

        print(f"{preview(settings, arguments.to)} examples as they are trained on: {arguments.to}")


if __name__ == "__main__":
    sys.exit(main())
