"""Directories in Hugging Face layout and torch pickles: input is checked, output appears atomically."""

import contextlib
import json
import os
import pathlib
import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ssl_jax.data.text import tokenizer_files
from ssl_jax.data.text.tokenizers import FastTokenizer, is_stand_in
from ssl_jax.errors import UserError
from ssl_jax.interop.family import Preprocessing

LARGEST = 2**22  # tokens of a vocabulary
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
OTHER_WEIGHTS = ("flax_model.msgpack", "tf_model.h5", "adapter_model.safetensors")
STORED = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # supported safetensors dtypes


def read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: is not a JSON object")
    return value


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """Return config.json of a model directory; raise UserError if it is missing or its weights are quantised."""
    if not directory.is_dir():
        raise UserError(f"hf:{directory}: there is no such directory; hf: takes a local directory with config.json in it")
    if not (directory / "config.json").is_file():
        raise UserError(f"hf:{directory}: is not a model directory (config.json is missing)")
    config = read_json(directory / "config.json")
    quantised = config.get("quantization_config")
    if quantised:
        kind = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        raise UserError(f"hf:{directory}: its weights are quantised ({kind}), which is not supported; use the float ones")
    return config


def read_tensors(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Return all tensors of a model directory: safetensors or a pickle of tensors, in one file or in several with an index.

    A single file takes precedence over an index, as in transformers: saving a single file leaves an earlier index behind.
    """
    for name, read in ((WEIGHTS, read_safetensors), (PICKLE, lambda file: read_pickle(file)[0])):
        if (directory / name).is_file():
            return read(directory / name)
        if (directory / f"{name}.index.json").is_file():
            return read_shards(directory / f"{name}.index.json", read)
    other = next((name for name in OTHER_WEIGHTS if (directory / name).is_file()), None)
    found = f"{WEIGHTS} is missing" if other is None else f"{other} is not supported; save them as {WEIGHTS} with transformers"
    raise UserError(f"hf:{directory}: holds no weights ({found})")


def read_shards(index: pathlib.Path, read: Callable[[pathlib.Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the tensors of all files that an index names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{index}: lacks weight_map")
    found = {}
    for shard in sorted(set(map(str, places.values()))):
        if pathlib.PurePath(shard).name != shard:
            raise UserError(f"{index}: {shard!r} is not the name of a file beside it")
        found |= read(index.parent / shard)
    missing = sorted(set(places) - set(found))
    if missing:
        raise UserError(f"{index.parent / places[missing[0]]}: lacks {missing[0]}, which {index.name} says it holds")
    return found


def read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file by name, bf16 as f32."""
    import safetensors

    if not file.is_file():
        raise UserError(f"{file}: there is no such file")
    found = {}
    try:
        with safetensors.safe_open(file, framework="numpy") as reader:
            for name in reader.keys():
                stored = reader.get_slice(name).get_dtype()
                if stored not in STORED:
                    raise not_plain(file, name, stored)
                if stored == "BF16":
                    with safetensors.safe_open(file, framework="flax") as other:
                        found[name] = np.asarray(other.get_tensor(name), np.float32)
                else:
                    found[name] = reader.get_tensor(name)
    except UserError:
        raise
    except (safetensors.SafetensorError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{file}: is damaged or not a safetensors file ({_line(error)}); download it again") from None
    return found


def not_plain(file: pathlib.Path, name: str, stored: str) -> UserError:
    """Return the error for a tensor in a quantised format, which needs scales or tables."""
    return UserError(
        f"{file}: {name} is stored as {stored}; quantised weights are not supported; use the float32, float16 or bfloat16 ones"
    )


def read_pickle(file: pathlib.Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Return (tensors by name, all other entries) of a torch file. Only tensors and plain values are unpickled."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file")
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: reading it needs torch; pip install torch, or convert it to safetensors") from None
    import argparse

    try:
        # argparse.Namespace is a harmless record of options; torch's warnings become one line below
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, ImportError) as error:
        if "TorchScript" in str(error):  # the files of github.com/openai/CLIP
            save = f'torch.save(torch.jit.load("{file.name}").state_dict(), "{file.stem}.pth")'
            raise UserError(f"{file}: is a TorchScript program, which is not executed; save its tensors with {save}") from None
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        other = _line(error) if isinstance(error, RuntimeError) else "it is damaged or of another format"
        why = f"it would call {named.group(1)}" if named else other
        raise UserError(f"{file}: is not a file of tensors, so it is not loaded ({why})") from None
    rest = {}
    if isinstance(content, dict):
        for name in ("model", "state_dict"):
            if isinstance(content.get(name), dict):
                rest, content = {k: v for k, v in content.items() if k != name}, content[name]
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()):
        raise UserError(f"{file}: is not a dictionary of tensors by name, so it is not loaded; save the model's state_dict()")
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for name, value in tensors.items():
        if value.is_quantized or value.is_complex() or (value.is_floating_point() and value.dtype not in plain):
            raise not_plain(file, name, str(value.dtype).removeprefix("torch."))
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    return {k: v.detach().numpy() for k, v in floats.items()}, rest


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read_preprocessing(directory: pathlib.Path, theirs: Mapping[str, Any]) -> Preprocessing:
    """Return the tokenizer and the image normalisation of a model directory."""
    source = f"hf:{directory}"
    mean, std, crop = (), (), 1.0
    if (directory / "preprocessor_config.json").is_file():
        settings = read_json(directory / "preprocessor_config.json")
        if settings.get("do_normalize", True):
            mean, std = (tuple(map(float, settings.get(f"image_{n}") or ())) for n in ("mean", "std"))
        crop = settings.get("crop_pct")
        crop = float(crop) if isinstance(crop, int | float) and 0 < crop <= 1 else 1.0
    return Preprocessing(source, read_tokenizer(directory, theirs), mean, std, crop)


def read_tokenizer(directory: pathlib.Path, theirs: Mapping[str, Any]) -> Any:
    """Return the directory's tokenizer, or for a text model without one a tokenizer of numbers: "101 7592 102"."""
    text = theirs.get("text_config") or theirs
    text = text if isinstance(text, Mapping) else {}
    size = text.get("vocab_size")
    if tokenizer_files.holds_tokenizer(directory):
        return tokenizer_files.load(directory)
    if "vocab_size" not in text and theirs.get("model_type") not in ("clip", "siglip"):
        return None
    text = {"pad_token_id": 1, **text} if theirs.get("model_type") == "roberta" else text
    size = {"clip": 49408, "siglip": 32000}.get(theirs.get("model_type")) if size is None else size
    return numbers(size, text) if isinstance(size, int) and 0 < size <= LARGEST else None  # other values are rejected later


def numbers(size: int, theirs: Mapping[str, Any]) -> Any:
    """Return a tokenizer of ids: the text of token 7 is "7", special tokens have their usual names; other text is an error."""
    import tokenizers as t

    roles = {"pad_token_id": "[PAD]", "mask_token_id": "[MASK]", "cls_token_id": "[CLS]", "sep_token_id": "[SEP]"}
    names = {i: str(i) for i in range(size)}
    special = {}
    for key, name in {**roles, "eos_token_id": "<|endoftext|>"}.items():
        index = theirs.get(key)
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and 0 <= index < size and index not in special.values():
            special[name] = index
    files = tokenizer_files.generation_config(theirs)
    if theirs.get("eos_token_id") == 2 and theirs.get("model_type") == "clip_text_model":
        special["<|endoftext|>"], files = size - 1, {}  # CLIP's first config.json had a wrong id for the largest one
    if "[MASK]" not in special:
        special["[MASK]"] = next(i for i in reversed(range(size)) if i not in special.values())
    names |= {index: name for name, index in special.items()}
    model = t.models.WordLevel({name: i for i, name in names.items()}, unk_token="[UNK]")  # not in the vocabulary
    inner = t.Tokenizer(model)
    inner.pre_tokenizer = t.pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(sorted(special, key=special.get))
    return FastTokenizer(inner, files)


# Writing ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def appearing_whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a directory to write into that is renamed to `target` on success and removed on failure."""
    if target.exists() and not target.is_dir():
        raise UserError(f"--to={target}: is a file; choose another path")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"--to={target}: is not empty; choose another path")
    parent = target.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"--to={target}: {existing} is not writable; choose another path or change its permissions")
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if target.is_dir():
            target.rmdir()
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def tokenizer_config(tokenizer: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json for a tokenizer that was trained here."""
    roles = ("bos", "eos", "unk", "pad") if tokenizer.mask_id is None else ("unk", "pad", "cls", "sep", "mask")
    found = {f"{role}_token": getattr(tokenizer, f"{role}_id") for role in roles}
    named = {name: tokenizer.token(index) for name, index in found.items() if index is not None}
    if config["model_type"] == "clip":  # CLIP's tokenizer pads with the end token; the text is pooled at the first
        named.setdefault("pad_token", named["eos_token"])
    kind, config = config["model_type"], config.get("text_config", config)
    types = ["token_type_ids"] if config.get("type_vocab_size", 0) > 1 else []
    length = config.get("n_positions", config.get("max_position_embeddings"))
    if kind == "roberta":  # the first rows of RoBERTa's position table are unused
        length -= config["pad_token_id"] + 1
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", *types, "attention_mask"],
        "model_max_length": length, **named,
    }  # fmt: skip


def write_directory(
    folder: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], info: Any, eval_crop: float = 1.0
) -> None:
    """Write config.json, model.safetensors and, where they apply, the tokenizer's files and preprocessor_config.json.

    `eval_crop` is stored as "crop_pct" (timm's name), which `read_preprocessing` reads.
    """
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    if isinstance(info.tokenizer, FastTokenizer) and not is_stand_in(info.tokenizer):
        info.tokenizer.save(folder)
        if not {"tokenizer_config.json", "special_tokens_map.json"} & set(info.tokenizer.files):
            made = tokenizer_config(info.tokenizer, config)
            (folder / "tokenizer_config.json").write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if info.mean and info.std and "image" in info.shapes:
        height, width, channels = info.shapes["image"].shape
        kind = "CLIPImageProcessor" if "text_config" in config else "ViTImageProcessor"
        spread = lambda values: list(values) * (channels if len(values) == 1 else 1)
        processor = {
            "image_processor_type": kind, "do_resize": True, "size": {"height": height, "width": width}, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": spread(info.mean), "image_std": spread(info.std),
        }  # fmt: skip
        processor |= {"crop_pct": eval_crop} if eval_crop != 1 else {}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
