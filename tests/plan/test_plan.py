"""`ssl-jax plan`: what it says of configs on devices that are here and on devices that are not."""

import dataclasses
import importlib.util
import json

import pytest

from ssl_jax import cli
from ssl_jax import config as configs
from ssl_jax.plan import compiled, fit, plan, report, roofline, topology
from ssl_jax.plan.costs import Collective
from ssl_jax.plan.warnings import warnings_of
from ssl_jax.target import Target

GPT = "configs/gpt/gpt2_124m.py"
SMALL = {"model.depth": "1", "model.width": "16", "model.heads": "2", "data.batch_size": "4", "training.accumulation": "1"}


@pytest.mark.parametrize("text, kind, count", [
    ("v5e:4x4", "TPU v5 lite", 16), ("v5p:2x2x2", "TPU v5", 8), ("v6e:2x4", "TPU v6 lite", 8),
    ("h100:8", "NVIDIA H100 80GB HBM3", 8),
])  # fmt: skip
def test_a_topology_names_its_devices(text, kind, count):
    found = topology.parse(text).target
    assert (found.kind, found.count) == (kind, count) and found.memory and found.flops("bfloat16")


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:0x4", "h100:8x8", "v9:2x2", "local:two", "local:999"])
def test_a_wrong_topology_is_one_line(text, capsys):
    assert cli.main(["plan", f"--config={GPT}", f"--topology={text}"]) == 2
    assert f"--topology={text}" in capsys.readouterr().err


def test_a_plan_of_the_devices_here(capsys):
    overrides = [f"--config.{k}={v}" for k, v in {"model.depth": 1, "model.width": 16, "data.batch_size": 4}.items()]
    assert cli.main(["plan", "--config=configs/mae/fashion_mnist.py", "--json", *overrides]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"].startswith("compiled for cpu") and found["collectives"] == {}
    assert found["memory"]["fits"] and found["memory"]["by_kind"]["optimizer"] >= 2 * found["memory"]["by_kind"]["parameters"]
    assert 0.9 * found["model_flops"] < found["executed_flops"] < 1.6 * found["model_flops"]
    assert sum(found["parts"].values()) == found["parameters"]


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(topology.Topology, "missing", lambda self: "pip install it")


@pytest.mark.slow
def test_what_does_not_fit_is_reported_with_a_setting_that_does(no_compiler, capsys):
    """Two blocks as wide as ViT-H's at a batch of 4,096 on one card: with the decoder's activations recomputed, too."""
    command = ["plan", "--config=configs/mae/vit_imagenet.py:variant=H", "--topology=h100:1", "--json",
               "--config.model.depth=2", "--config.task.decoder.depth=2"]  # fmt: skip
    plain = ["--config.model.remat=none", "--config.task.decoder.remat=none"]
    assert cli.main(command + plain) == 3
    found = json.loads(capsys.readouterr().out)
    assert not found["memory"]["fits"] and found["method"] == "analysis, nothing is compiled; to compile: pip install it"
    assert found["collectives"] is None and found["traffic"] is None
    overrides = [word for word in found["proposal"].split() if word.startswith("--config.")]
    assert overrides == ["--config.model.remat=dots", "--config.task.decoder.remat=dots"]
    assert cli.main(command + overrides) == 0
    assert found["run"]["steps"] == round(800 * 1_281_167 / 4096)
    half = found["run"]["times"][-1]
    peak = 989.4e12
    assert half["mfu"] == 0.5 and half["step_seconds"] == pytest.approx(found["model_flops"] / (0.5 * peak))
    assert half["device_hours"] == pytest.approx(half["step_seconds"] * found["run"]["steps"] / 3600)


@pytest.mark.parametrize("where", ["v5e:2x2", "local:1"])
def test_a_plan_by_analysis_compiles_nothing(where, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "compile_step", None)
    small = ["--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2", "--config.data.batch_size=4"]
    assert (
        cli.main(["plan", "--config=configs/mae/fashion_mnist.py", f"--topology={where}", "--analyse", "--json", *small]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "analysis, nothing is compiled; to compile: omit --analyse"
    assert found["memory"]["by_kind"]["temporaries"] > 0


@pytest.mark.parametrize("file, stacks", [
    ("configs/clip/vit_b32_laion400m.py", ["model.image", "model.text"]),
    ("configs/downstream/multi30k_en_de.py", ["model.encoder"]),
    ("configs/ijepa/cifar10.py", ["model", "task.predictor"]),
    (GPT, ["model"]),
])  # fmt: skip
def test_a_setting_reaches_every_stack_of_a_config(file, stacks):
    config = configs.load(file)
    assert fit.stacks_of(config) == stacks
    changed = configs.flat(fit.changed(config, {f"{path}.remat": "full" for path in stacks}).to_dict())
    assert {changed[f"{path}.remat"] for path in stacks} == {"full"}


def test_state_is_split_by_fsdp(no_compiler):
    config = configs.load(GPT, {"model.depth": "2", "data.batch_size": "64", "training.accumulation": "1"})
    whole = compiled.state_memory(fit.virtual(config, topology.parse("v5e:2x4"))[1])
    split = compiled.state_memory(fit.virtual(fit.changed(config, {"mesh.fsdp": "8", "mesh.data": "1"}),
                                              topology.parse("v5e:2x4"))[1])  # fmt: skip
    assert whole.parameters == 4 * (50304 * 768 + 1024 * 768 + 2 * (12 * 768**2 + 2 * 768) + 768)
    assert split.parameters < whole.parameters / 7 and split.optimizer < whole.optimizer / 7


def test_a_roofline_names_what_binds():
    target = Target("tpu", "TPU v5 lite", 16)
    found = roofline.roofline(target, "bfloat16", flops=197e12, traffic=819e9 * 2, sent=100e9 / 2)
    assert found.named == {"compute": 1.0, "memory": 2.0, "interconnect": 0.5}
    assert (found.binds, found.seconds) == ("memory", 2.0)
    assert roofline.roofline(Target("cpu", "cpu"), "float32", flops=1, traffic=1, sent=1).seconds is None


def test_a_utilisation_that_memory_or_interconnect_rule_out_is_marked():
    """10 GB of traffic take 12 ms; at 40 % MFU the step would take 10 ms."""
    found = plan(configs.load(GPT, SMALL), dataclasses.replace(topology.parse("local:1"), analysed=True), examples=100)
    times = [{"mfu": share, "step_seconds": seconds, "seconds": 1.0, "device_hours": 1.0} for share, seconds in
             ((0.3, 0.013), (0.4, 0.010))]  # fmt: skip
    found |= {"roofline": {"by_resource": {"memory": 0.012}, "seconds": 0.012, "binds": "memory"},
              "run": {"steps": 10, "assumed": "", "times": times}}  # fmt: skip
    text = {line[:11]: line for line in report.lines(found) if "% MFU" in line}
    assert [("out of reach" in line) for line in text.values()] == [False, True]


def test_the_bytes_that_a_tpus_compiler_names():
    text = "RESOURCE_EXHAUSTED: ... Ran out of memory in memory space hbm. Used 64.90G of 15.75G hbm. Exceeded by 49.15G."
    assert compiled.needed(text) == int(64.9 * 2**30)


def test_warnings_say_what_costs():
    facts = dict(parameters=10**8, mesh=dict(data=16, fsdp=1, tensor=1), accumulation=8, batch_size=512, attention="xla (why)",
                 platform="tpu")  # fmt: skip
    looped = Collective("all-reduce", "f32[100000000]", 4 * 10**8, 16, 8, (8,), "dot")
    lines = warnings_of([looped], facts)
    assert any("sum 3.20 GB" in line and "0.40 GB" in line for line in lines)
    assert any("run once per microbatch (3.20 GB a step)" in line for line in lines)
    assert any("attention without a fused kernel: xla (why)" in line for line in lines)
    once = Collective("all-reduce", "f32[100000000]", 4 * 10**8, 16, 1, (), "dot")
    for kernels in ("splash", "xla (50 keys are few); splash (197 queries, 197 keys of width 32)"):  # few keys need none
        assert warnings_of([once], facts | dict(attention=kernels)) == []
    parts = [Collective("reduce-scatter", "f32[100000000]", 4 * 10**8, 4, 1, (), "dot"),
             Collective("all-reduce", "f32[25000000]", 10**8, 4, 1, (), "dot")]  # fmt: skip
    split = facts | dict(attention="splash", mesh=dict(data=4, fsdp=4, tensor=1))
    assert warnings_of(parts, split) == []
    assert ["sum 0.90 GB" in line for line in warnings_of([parts[0], *parts], split)] == [True]  # a gradient summed twice
    narrow = Collective("reduce-scatter", "bf16[100000000]", 2 * 10**8, 16, 1, (), "dot")
    fsdp, tensor = (facts | dict(attention="splash", mesh=mesh) for mesh in (
        dict(data=4, fsdp=4, tensor=1), dict(data=4, fsdp=1, tensor=4)))  # fmt: skip
    assert ["sum 0.20 GB" in line for line in warnings_of([narrow], fsdp)] == [True]
    assert warnings_of([narrow], tensor) == []  # sums of activations, too


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU with libtpu")
def test_a_small_config_compiles_for_a_tpu(monkeypatch):
    """Gradients are summed once a step, outside of the loop over microbatches; attention is the TPU's kernel."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    overrides = {"model.depth": "2", "model.width": "128", "model.heads": "2", "data.batch_size": "32", "data.block": "256",
                 "training.accumulation": "4"}  # fmt: skip
    found = plan(configs.load(GPT, overrides), topology.parse("v5e:2x2"))
    assert found["memory"]["fits"] and "splash runs" in found["attention"]
    gradient = 4 * found["parameters"]
    assert found["collectives"]["all-reduce"]["bytes"] <= 1.2 * gradient
    assert not [line for line in found["warnings"] if "per microbatch" in line or "sum" in line]
