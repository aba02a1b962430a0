"""Published weights, and weights trained here."""

import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import ssl_jax  # noqa: E402
from ssl_jax import cli  # noqa: E402
from ssl_jax.interop import convert  # noqa: E402
from tests.parity import minilm  # noqa: E402
from tests.parity.cases import CASES, images, mae  # noqa: E402
from tests.parity.reference import Pair, difference  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.skipif(not (minilm.FOLDER / "model.safetensors").is_file(), reason=f"{minilm.FOLDER} holds no MiniLM")
def test_minilm_embeds_sentences_as_the_reference_does():
    worst, moved = minilm.measure(minilm.sentences()[0])
    assert worst <= 1e-5 and moved == 0


def test_an_encoder_trained_here_gives_the_same_features_there(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 1)).astype(np.uint8)
    np.savez(tmp_path / "train.npz", image=pixels)
    (tmp_path / "config.py").write_text(f"""
from ml_collections import ConfigDict
def get_config():
    return ConfigDict(dict(
        data=dict(train="npz:{tmp_path}/train.npz", batch_size=8),
        task=dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2)),
        model=dict(name="vit", patch_size=3, width=12, depth=2, heads=3), training=dict(duration="3 steps"),
        optimizer=dict(lr=1e-2, warmup="1 steps"),
    ))
""")
    assert cli.main(["pretrain", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert cli.main(["convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'hf'}"]) == 0
    trained = ssl_jax.load(tmp_path / "run")
    ours = trained.features({"image": pixels})
    theirs = transformers.ViTMAEModel.from_pretrained(tmp_path / "hf", mask_ratio=0.0).eval()
    normalised = torch.tensor(trained.prepare({"image": pixels})["image"]).permute(0, 3, 1, 2)
    with torch.no_grad():  # nothing masked, patches in their order
        tokens = theirs(normalised, noise=torch.arange(16.0).expand(32, 16)).last_hidden_state
    assert difference(ours["tokens"], tokens[:, 1:]) <= 1e-5
    assert difference(ours["mean"], tokens[:, 1:].mean(1)) <= 1e-5
    assert difference(ours["cls"], tokens[:, 0]) <= 1e-5


def test_dinov2_on_images_of_another_size(tmp_path):
    """Its positions are interpolated, bicubic, to a grid that is not square."""
    pair = Pair(CASES["DINOv2"], tmp_path / "theirs")
    other = images(2, 3, 12, 15)()["image"]
    ours = ssl_jax.load(f"hf:{tmp_path / 'theirs'}", image_size=(12, 15))
    ours = ours.forward({"pixel_values": other.permute(0, 2, 3, 1).numpy()})
    with torch.no_grad():
        theirs = pair.theirs(other)
    assert difference(ours["tokens"], theirs.last_hidden_state) <= 1e-5


# A project's own files -------------------------------------------------------------------------------------------------


def original_mae(state: dict) -> dict:
    """ViTMAEForPreTraining's tensors under facebookresearch/mae's names."""
    found, fused = {}, {}
    plain = {
        "vit.embeddings.cls_token": "cls_token", "vit.embeddings.position_embeddings": "pos_embed",
        "decoder.mask_token": "mask_token", "decoder.decoder_pos_embed": "decoder_pos_embed",
    }  # fmt: skip
    parts = {
        "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
        "layernorm_before": "norm1", "layernorm_after": "norm2",
    }  # fmt: skip
    for name, value in state.items():
        if name in plain:
            found[plain[name]] = value
            continue
        *stem, kind = name.split(".")
        stem = ".".join(stem).replace("vit.embeddings.patch_embeddings.projection", "patch_embed.proj")
        stem = stem.replace("vit.encoder.layer.", "blocks.").replace("decoder.decoder_encoder.layer.", "decoder_blocks.")
        stem = stem.replace("vit.layernorm", "norm").replace("decoder.decoder_", "decoder_")
        if ".attention.attention." in stem:
            block, part = stem.split(".attention.attention.")
            fused.setdefault(f"{block}.attn.qkv.{kind}", {})[part] = value
            continue
        for ours, theirs in parts.items():
            if stem.endswith(f".{ours}"):
                stem = stem.removesuffix(ours) + theirs
                break
        found[f"{stem}.{kind}"] = value
    return found | {name: torch.cat([x["query"], x["key"], x["value"]]) for name, x in fused.items()}


@pytest.mark.parametrize("whole", [True, False])
def test_facebookresearch_mae(whole, tmp_path):
    from safetensors.torch import load_file

    case = mae(12, 12, 4, 3, sincos=True, num_hidden_layers=2, decoder_num_hidden_layers=1, layer_norm_eps=1e-6)
    case.config.hidden_size, case.config.num_attention_heads = 64, 1  # heads of 64 are what its files are read with
    case.config.decoder_hidden_size, case.config.decoder_num_attention_heads = 32, 16
    pair = Pair(case, tmp_path / "hf")
    state = original_mae(load_file(tmp_path / "hf" / "model.safetensors"))
    if not whole:
        state = {k: v for k, v in state.items() if "decoder" not in k and k != "mask_token"}
    torch.save({"model": state}, tmp_path / "mae.pth")
    assert "facebookresearch/mae" in convert(str(tmp_path / "mae.pth"), str(tmp_path / "run"))
    ours = ssl_jax.load(tmp_path / "run")
    wanted = pair.params if whole else {"encoder": pair.params["encoder"]}
    same = lambda a, b: (
        set(a) == set(b) and all(same(a[k], b[k]) if hasattr(a[k], "items") else np.array_equal(a[k], b[k]) for k in a)
    )
    assert same(ours.params, wanted)
    if whole:
        assert ours.task.config.target == "normalized_pixels" and ours.task.decoder.config.heads == 16
        a, b = ours.forward(pair.given)["pred"], ssl_jax.load(f"hf:{tmp_path / 'hf'}").forward(pair.given)["pred"]
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_openai_clip(tmp_path):
    """The names and layouts of github.com/openai/CLIP, made from CLIPModel's by the rules of its model.py."""
    from tests.parity.cases import image_text, towers

    sizes = towers(eos_token_id=22)
    for part in sizes.values():
        part |= dict(hidden_size=64, num_attention_heads=1, intermediate_size=256)
    case = image_text(transformers.CLIPModel, transformers.CLIPConfig(**sizes, projection_dim=5), 22, mask=False)
    pair = Pair(case, tmp_path / "hf")
    state, made = dict(pair.theirs.state_dict()), {}
    made["logit_scale"] = state["logit_scale"]
    made["visual.proj"], made["text_projection"] = state["visual_projection.weight"].T, state["text_projection.weight"].T
    for theirs, ours in (
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ):
        made[ours] = state[theirs]
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    norms["text_model.final_layer_norm"] = "ln_final"
    for side, prefix in (("vision_model", "visual."), ("text_model", "")):
        for i in range(2):
            a, b = f"{side}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            for kind in ("weight", "bias"):
                made[f"{b}.attn.in_proj_{kind}"] = torch.cat([state[f"{a}.self_attn.{n}_proj.{kind}"] for n in "qkv"])
            names = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
            names |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
            norms |= {f"{a}.{theirs}": f"{b}.{ours}" for theirs, ours in names.items()}
    made |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in norms.items() for kind in ("weight", "bias")}
    torch.save({k: v.contiguous() for k, v in made.items()}, tmp_path / "clip.pt")
    convert(str(tmp_path / "clip.pt"), str(tmp_path / "run"))
    ours = ssl_jax.load(tmp_path / "run").forward(pair.given)
    with torch.no_grad():
        theirs = pair.case.theirs(pair.theirs, pair.inputs)
    for name in ("image_embedding", "text_embedding", "logits_per_image"):
        assert difference(ours[name], theirs[name]) <= 1e-5


def test_a_program_is_not_run_and_the_mend_works(tmp_path, capsys, monkeypatch):
    """github.com/openai/CLIP hands out TorchScript archives; what the message says makes a file of tensors of one."""
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), "program.pt")
    assert cli.main(["convert", "--from=program.pt", "--to=run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "TorchScript" in error
    exec(error.split(" with ", 1)[1])
    assert set(torch.load("program.pth", weights_only=True)) == {"weight", "bias"}
    assert not (tmp_path / "run").exists()


class Harmful:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("it_ran"),)


def test_a_pickle_of_other_things_is_refused_and_does_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"cls_token": Harmful()}}, "bad.pth")
    torch.save({"model": {"cls_token": 3}}, "numbers.pth")
    torch.save({"model": {"cls_token": torch.zeros(1)}}, "other.pth")
    for name in ("bad.pth", "numbers.pth", "other.pth"):
        assert cli.main(["convert", f"--from={name}", "--to=run"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and (name == "other.pth" or "not loaded" in error)
        assert name != "bad.pth" or "(it would call " in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pth", "numbers.pth", "other.pth"]
