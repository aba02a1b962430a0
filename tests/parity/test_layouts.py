"""Directories as they are published: older keys and names, several files, half precision, more or fewer keys than today's."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

import ssl_jax  # noqa: E402
from ssl_jax import cli  # noqa: E402
from ssl_jax.data.text.tokenizer_files import byte_level_bpe, wordpiece  # noqa: E402
from ssl_jax.interop.files import numbers  # noqa: E402
from tests.parity.cases import bert, ids, llama, modernbert, random, towers  # noqa: E402
from tests.parity.reference import difference, randomise  # noqa: E402

pytestmark = pytest.mark.parity


def published(cls, config, folder, seed=3, **keys):
    """The reference in `folder`, with a config.json of `keys` alone where there are such."""
    model = randomise(cls(config), seed)
    model.save_pretrained(folder)
    if keys:
        (folder / "config.json").write_text(json.dumps(keys))
    return model


def renamed(folder, name, **more):
    """The tensors of `folder` under the names that `name` gives, with `more` of them; None: left out."""
    tensors = {name(k): v.clone() for k, v in load_file(folder / "model.safetensors").items()} | more
    save_file({k: v.contiguous() for k, v in tensors.items() if k is not None}, folder / "model.safetensors")


def there_and_back(folder, tmp_path):
    """Through a work directory: the same tensors byte for byte, but for names."""
    assert cli.main(["convert", f"--from=hf:{folder}", f"--to={tmp_path / 'run'}"]) == 0
    assert cli.main(["convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'again'}"]) == 0
    return load_file(tmp_path / "again" / "model.safetensors")


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def agree(ours, theirs):
    return difference(ours, theirs) <= 1e-5


# What bert-base-uncased's config.json holds, at a smaller size
BERT = dict(
    architectures=["BertForMaskedLM"], attention_probs_dropout_prob=0.1, gradient_checkpointing=False, hidden_act="gelu",
    hidden_dropout_prob=0.1, hidden_size=12, initializer_range=0.02, intermediate_size=20, layer_norm_eps=1e-12,
    max_position_embeddings=9, model_type="bert", num_attention_heads=3, num_hidden_layers=2, pad_token_id=0,
    position_embedding_type="absolute", transformers_version="4.6.0.dev0", type_vocab_size=2, use_cache=True, vocab_size=23,
)  # fmt: skip


@pytest.mark.parametrize("keys", [BERT, {k: v for k, v in BERT.items() if k not in ("architectures", "layer_norm_eps")}])
def test_bert_says_masked_language_model_and_holds_more(keys, tmp_path):
    """bert-base-uncased: its file is BertForPreTraining's, and its norms are called gamma and beta."""
    model = published(transformers.BertForPreTraining, bert(), tmp_path / "hf", **keys)
    older = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    renamed(tmp_path / "hf", older, **{"bert.embeddings.position_ids": torch.arange(9)[None]})
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}").forward({"tokens": ids().numpy()})
    theirs = run(model, input_ids=ids())
    assert agree(ours["logits"], theirs.prediction_logits) and agree(ours["next_sentence"], theirs.seq_relationship_logits)
    back = there_and_back(tmp_path / "hf", tmp_path)
    assert all(torch.equal(back[name], model.state_dict()[name]) for name in back)


def test_an_encoder_without_names_of_its_kind(tmp_path):
    """No "architectures": the tensors say that it is a BertModel."""
    keys = {k: v for k, v in BERT.items() if k != "architectures"}
    model = published(transformers.BertModel, bert(), tmp_path / "hf", **keys)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}")
    assert agree(ours.features({"tokens": ids().numpy()})["pooled"], run(model, input_ids=ids()).pooler_output)


def test_roberta_with_a_pooler_and_padding_on_either_side(tmp_path):
    """roberta-base: one token type, a pooler that its language model does not read, positions that skip padding."""
    keys = BERT | dict(architectures=["RobertaForMaskedLM"], model_type="roberta", pad_token_id=1, bos_token_id=0,
                       eos_token_id=2, type_vocab_size=1, layer_norm_eps=1e-5, max_position_embeddings=11)  # fmt: skip
    keys.pop("position_embedding_type")
    config = bert(
        transformers.RobertaConfig, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, max_position_embeddings=11
    )
    model = published(transformers.RobertaForMaskedLM, config, tmp_path / "hf", **keys)
    pooler = {"roberta.pooler.dense.weight": random(12, 12), "roberta.pooler.dense.bias": random(12)}
    output = {"lm_head.decoder.weight": model.lm_head.decoder.weight.detach().clone()}
    renamed(
        tmp_path / "hf", lambda name: name, **pooler, **output, **{"roberta.embeddings.position_ids": torch.arange(11)[None]}
    )
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}")
    tokens = ids(4, 9)
    tokens[0, :3], tokens[1, 5:], tokens[2, 4] = 1, 1, 1  # padding on the left, on the right, and inside
    assert agree(ours.forward({"tokens": tokens.numpy()})["logits"], run(model, input_ids=tokens).logits)
    mask = (tokens != 1).long()
    padded = ours.forward({"tokens": tokens.numpy(), "attention_mask": mask.numpy()})["logits"]
    assert agree(padded, run(model, input_ids=tokens, attention_mask=mask).logits)  # at the padded places, too
    back = there_and_back(tmp_path / "hf", tmp_path)
    assert all(torch.equal(back[name], value) for name, value in pooler.items())


@pytest.mark.parametrize("kind", ["BERT", "ModernBERT", "GPT-2"])
def test_outputs_at_padded_places_are_theirs(kind, tmp_path):
    if kind == "BERT":
        model = published(transformers.BertForMaskedLM, bert(), tmp_path / "hf")
    elif kind == "ModernBERT":
        model = published(transformers.ModernBertForMaskedLM, modernbert(local_attention=8), tmp_path / "hf")
    else:
        config = transformers.GPT2Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=2, n_head=3)
        model = published(transformers.GPT2LMHeadModel, config, tmp_path / "hf")
    tokens, mask = ids(), (torch.arange(7)[None] < torch.tensor([[7], [5], [6]])).long()
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}").forward({"tokens": tokens.numpy(), "attention_mask": mask.numpy()})
    assert agree(ours["logits"], run(model, input_ids=tokens, attention_mask=mask).logits)


def test_gpt2_without_prefix_and_with_its_causal_masks(tmp_path):
    """gpt2: names without "transformer.", buffers that hold the causal mask, keys that say nothing of the model."""
    keys = dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=22, embd_pdrop=0.1,
        eos_token_id=22, initializer_range=0.02, layer_norm_epsilon=1e-5, model_type="gpt2", n_ctx=9, n_embd=12, n_head=3,
        n_layer=2, n_positions=9, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
        summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=23,
    )  # fmt: skip
    config = transformers.GPT2Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=2, n_head=3)
    model = published(transformers.GPT2LMHeadModel, config, tmp_path / "hf", **keys)
    causal = torch.tril(torch.ones(9, 9))[None, None]
    buffers = {f"h.{i}.attn.bias": causal.clone() for i in range(2)} | {"h.0.attn.masked_bias": torch.tensor(-1e4)}
    renamed(tmp_path / "hf", lambda n: n.removeprefix("transformer."), **buffers)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}")
    assert agree(ours.forward({"tokens": ids().numpy()})["logits"], run(model, input_ids=ids()).logits)
    back = there_and_back(tmp_path / "hf", tmp_path)
    assert all(torch.equal(back[name], model.state_dict()[name]) for name in back)


def test_llama_in_several_bfloat16_files(tmp_path):
    """Llama 3.2: tied, llama3 positions under their older key, several tokens that end a text."""
    keys = dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1,
        eos_token_id=[2, 3], head_dim=8, hidden_act="silu", hidden_size=12, initializer_range=0.02, intermediate_size=20,
        max_position_embeddings=64, mlp_bias=False, model_type="llama", num_attention_heads=6, num_hidden_layers=2,
        num_key_value_heads=2, pretraining_tp=1, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True,
        rope_scaling=dict(
            factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=16, rope_type="llama3"
        ),
        torch_dtype="bfloat16", transformers_version="4.45.0.dev0", use_cache=True, vocab_size=23,
    )  # fmt: skip
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps(keys))
    config = transformers.LlamaConfig.from_pretrained(tmp_path / "config")
    randomise(transformers.LlamaForCausalLM(config), 3).bfloat16().save_pretrained(tmp_path / "hf", max_shard_size="2KB")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(keys))
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ours, tokens = ssl_jax.load(f"hf:{tmp_path / 'hf'}"), ids(2, 40)
    assert agree(ours.forward({"tokens": tokens.numpy()})["logits"], run(model, input_ids=tokens).logits)
    there_and_back(tmp_path / "hf", tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(run(again, input_ids=tokens).logits, run(model, input_ids=tokens).logits)


def test_modernbert_with_its_first_keys_and_room_for_more_tokens(tmp_path):
    """answerdotai/ModernBERT-base: no layer_types, two rotary bases; 40 tokens of which the tokenizer has 23."""
    keys = dict(
        architectures=["ModernBertForMaskedLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1,
        classifier_activation="gelu", classifier_bias=False, classifier_dropout=0.0, classifier_pooling="mean", cls_token_id=1,
        decoder_bias=True, deterministic_flash_attn=False, embedding_dropout=0.0, eos_token_id=2, global_attn_every_n_layers=3,
        global_rope_theta=160000.0, gradient_checkpointing=False, hidden_activation="gelu", hidden_size=12,
        initializer_cutoff_factor=2.0, initializer_range=0.02, intermediate_size=20, layer_norm_eps=1e-05, local_attention=4,
        local_rope_theta=10000.0, max_position_embeddings=64, mlp_bias=False, mlp_dropout=0.0, model_type="modernbert",
        norm_bias=False, norm_eps=1e-05, num_attention_heads=3, num_hidden_layers=5, pad_token_id=0,
        position_embedding_type="absolute", reference_compile=False, repad_logits_with_grad=False, sep_token_id=2,
        sparse_pred_ignore_index=-100, sparse_prediction=False, torch_dtype="float32", vocab_size=40,
    )  # fmt: skip
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps(keys))
    config = transformers.ModernBertConfig.from_pretrained(tmp_path / "config")
    # seed 3 draws weights with which the reference itself is 3e-5 off what it gives in f64, and ours 2e-6
    model = published(transformers.ModernBertForMaskedLM, config, tmp_path / "hf", seed=4, **keys)
    numbers(23, dict(pad_token_id=0, cls_token_id=1, sep_token_id=2)).save(tmp_path / "hf")
    tokens = ids(3, 30, 4, 40)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}").forward({"tokens": tokens.numpy()})["logits"]
    assert agree(ours, run(model, input_ids=tokens).logits)
    assert there_and_back(tmp_path / "hf", tmp_path)["model.embeddings.tok_embeddings.weight"].shape == (40, 12)
    assert ssl_jax.load(tmp_path / "run").forward({"tokens": tokens.numpy()})["logits"].tobytes() == ours.tobytes()


def test_clip_with_a_second_section_and_other_numbers_of_images_and_texts(tmp_path):
    """openai/clip-vit-large-patch14: the sections stand there twice, the end of a text is said to be 2."""
    sizes = towers(eos_token_id=2)
    config = transformers.CLIPConfig(**sizes, projection_dim=7)
    model = published(transformers.CLIPModel, config, tmp_path / "hf")
    keys = json.loads((tmp_path / "hf" / "config.json").read_text())
    keys["text_config_dict"] = {k: keys["text_config"].pop(k) for k in ("hidden_size", "num_attention_heads")}
    keys["vision_config_dict"] = None
    (tmp_path / "hf" / "config.json").write_text(json.dumps(keys))
    positions = {"text_model.embeddings.position_ids": torch.arange(7)[None]}
    renamed(tmp_path / "hf", lambda name: name, **positions)
    tokens = ids(3, 7, 3, 20)
    tokens[torch.arange(3), torch.tensor([6, 3, 4])] = 22  # what ends a text is the largest id
    images = random(2, 3, 9, 9)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}").forward(
        {"pixel_values": images.permute(0, 2, 3, 1).numpy(), "tokens": tokens.numpy()}
    )
    theirs = run(model, input_ids=tokens, pixel_values=images)
    assert ours["logits_per_image"].shape == (2, 3) and agree(ours["logits_per_image"], theirs.logits_per_image)
    assert agree(ours["image_embedding"], theirs.image_embeds) and agree(ours["text_embedding"], theirs.text_embeds)


def test_siglip_whose_patches_leave_a_rest_and_text_with_a_mask(tmp_path):
    """google/siglip-so400m-patch14-384: 384 is 27 patches of 14 pixels and 6 more; heads of 72, an MLP that is no multiple."""
    sizes = towers(eos_token_id=22)
    sizes["vision_config"] |= dict(image_size=11, intermediate_size=43)
    model = published(transformers.SiglipModel, transformers.SiglipConfig(**sizes), tmp_path / "hf")
    tokens, mask = ids(4, 7, 3, 20), (torch.arange(7)[None] < torch.tensor([[7], [3], [5], [6]])).long()
    images = random(4, 3, 11, 11)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}")
    batch = {"pixel_values": images.permute(0, 2, 3, 1).numpy(), "tokens": tokens.numpy()}
    for more in ({}, {"attention_mask": mask}):
        mine = ours.forward(batch | {name: value.numpy() for name, value in more.items()})
        theirs = run(model, input_ids=tokens, pixel_values=images, **more)
        for name, value in (("image_embedding", theirs.image_embeds), ("text_embedding", theirs.text_embeds)):
            assert agree(mine[name], value)
        assert agree(mine["logits_per_image"], theirs.logits_per_image)
    back = there_and_back(tmp_path / "hf", tmp_path)
    assert all(torch.equal(back[name], value) for name, value in load_file(tmp_path / "hf" / "model.safetensors").items())
    assert json.loads((tmp_path / "again" / "config.json").read_text())["vision_config"]["image_size"] == 11


def test_vit_with_one_channel_in_half_precision(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=12, num_attention_heads=3, intermediate_size=20, image_size=[6, 9], patch_size=[2, 3], num_channels=1,
        num_hidden_layers=1, num_labels=3, id2label={0: "zero", 1: "one", 2: "one"}, label2id={"zero": 0, "one": 2},
    )  # fmt: skip
    model = randomise(transformers.ViTForImageClassification(config), 3).half()
    model.save_pretrained(tmp_path / "hf")
    images = random(2, 1, 6, 9)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}")
    assert ours.info.classes == ("zero", "one", "one")
    theirs = run(model.float(), pixel_values=images)
    assert agree(ours.forward({"pixel_values": images.permute(0, 2, 3, 1).numpy()})["logits"], theirs.logits)
    back = there_and_back(tmp_path / "hf", tmp_path)
    halves = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(back[name].half(), value) for name, value in halves.items())


def test_dinov2_giant_and_registers(tmp_path):
    """The giant's gated MLP is two thirds of 4 x 24, rounded up to a multiple of 8; registers stand behind the class token."""
    config = transformers.Dinov2Config(
        hidden_size=24, num_attention_heads=3, num_hidden_layers=2, image_size=9, patch_size=3, use_swiglu_ffn=True
    )
    model = published(transformers.Dinov2Model, config, tmp_path / "hf")
    images = random(2, 3, 9, 9)
    ours = ssl_jax.load(f"hf:{tmp_path / 'hf'}").forward({"pixel_values": images.permute(0, 2, 3, 1).numpy()})
    assert agree(ours["tokens"], run(model, pixel_values=images).last_hidden_state)
    shape = dict(hidden_size=12, num_attention_heads=3, num_hidden_layers=1, image_size=9, patch_size=3, use_swiglu_ffn=True)
    config = transformers.Dinov2WithRegistersConfig(**shape, num_register_tokens=2)
    model = published(transformers.Dinov2WithRegistersModel, config, tmp_path / "registers")
    ours = ssl_jax.load(f"hf:{tmp_path / 'registers'}").forward({"pixel_values": images.permute(0, 2, 3, 1).numpy()})
    assert agree(ours["tokens"], run(model, pixel_values=images).last_hidden_state)
    there_and_back(tmp_path / "registers", tmp_path)


@pytest.mark.parametrize("kind", ["GPT-2", "LLaMA", "ModernBERT"])
def test_the_tokenizer_is_carried_along(kind, tmp_path):
    """The ids, the special tokens and the longest text that AutoTokenizer reads are the same after both directions."""
    if kind == "ModernBERT":
        tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "the", "film", "##s", "was", "good", "."]
        tokenizer, special = wordpiece({t: i for i, t in enumerate(tokens)}), dict(
            pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", unk_token="[UNK]"
        )  # fmt: skip
        config, cls = modernbert(), transformers.ModernBertForMaskedLM
    else:
        letters = {chr(i): i for i in range(97, 112)} | {"Ġ": 15}
        tokenizer = byte_level_bpe({c: i for i, c in enumerate([*letters, "<|endoftext|>"])}, [], ["<|endoftext|>"])
        special = dict(eos_token="<|endoftext|>", bos_token="<|endoftext|>")
        if kind == "GPT-2":
            config = transformers.GPT2Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=1, n_head=3)
            cls = transformers.GPT2LMHeadModel
        else:
            config, cls = llama(), transformers.LlamaForCausalLM
    published(cls, config, tmp_path / "hf")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.inner, **special, model_max_length=9).save_pretrained(
        tmp_path / "hf"
    )
    there_and_back(tmp_path / "hf", tmp_path)
    before, after = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "again"))
    text = "the films was good." if kind == "ModernBERT" else "a bad ode"
    assert before(text)["input_ids"] == after(text)["input_ids"]
    for name, token in special.items():
        assert getattr(after, name) == token == getattr(before, name)
    if kind == "ModernBERT":
        assert after([text, "film"], padding=True)["input_ids"] == before([text, "film"], padding=True)["input_ids"]


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
def test_a_tokenizer_alone_becomes_one_that_the_reference_can_use(kind, tmp_path):
    """No tokenizer_config.json, as for a tokenizer that was trained here: AutoTokenizer reads what is written in its place."""
    if kind == "BERT":
        published(transformers.BertForMaskedLM, bert(), tmp_path / "hf")
        tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "the", "film", "##s", "was", "good"]
        tokenizer = wordpiece({token: i for i, token in enumerate(tokens)})
    else:
        config = transformers.GPT2Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=1, n_head=3)
        published(transformers.GPT2LMHeadModel, config, tmp_path / "hf")
        letters = {chr(i): i - 97 for i in range(97, 112)}
        tokenizer = byte_level_bpe({**letters, "Ġ": 15, "<|endoftext|>": 16}, [], ["<|endoftext|>"])
    tokenizer.save(tmp_path / "hf")
    there_and_back(tmp_path / "hf", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    text = ["the film was good"] if kind == "BERT" else ["a bad ode"]
    assert theirs(text)["input_ids"] == tokenizer.encode_batch(text, special=True)
    assert theirs.model_max_length == 9
    cls = transformers.BertForMaskedLM if kind == "BERT" else transformers.GPT2LMHeadModel
    encoded = theirs([*text, "the"], padding=True) if kind == "BERT" else theirs(text)
    model = cls.from_pretrained(tmp_path / "again")
    assert run(model.eval(), **{name: torch.tensor(value) for name, value in encoded.items()}).logits.shape[-1] == 23
    if kind == "BERT":
        assert (theirs.mask_token, theirs.pad_token) == ("[MASK]", "[PAD]")
