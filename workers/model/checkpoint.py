"""Read the files of a checkpoint directory (or a hub id's): configuration, quantisation, tensors.

safetensors only, no pickle and no code from the checkpoint. Whatever is wrong with a file becomes a ModelLoadError that
says what to do. Knows nothing of models built from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from workers.errors import ModelLoadError

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt"]


def find_directory(source: str | Path) -> Path:
    """Return the directory of a checkpoint; a hub id is downloaded (safetensors, configuration, tokenizer)."""
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if path.exists():
        raise ModelLoadError(f"{name} is a file. Set CHAT_MODEL to the directory that holds config.json.")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelLoadError(f"There is no directory {name}. Set CHAT_MODEL to a model directory or a hub id.")
    # Imported here: only a hub id needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise ModelLoadError(f"{name} is neither a directory nor a hub id. Set CHAT_MODEL to one.") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(f"The hub has no model {name} for you. Check the id, or set HF_TOKEN.") from error
    except (LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(
            f"{name} is not in the local cache and cannot be downloaded ({type(error).__name__}). Go online, "
            "unset HF_HUB_OFFLINE, or copy the model to this machine and set CHAT_MODEL to its directory."
        ) from error


def read_config(directory: Path) -> Any:
    """Return the transformers configuration of a causal language model."""
    raw = _read_json(directory / "config.json")
    if raw is None:
        raise ModelLoadError(f"{directory} has no config.json. Set CHAT_MODEL to a transformers model directory.")
    if "auto_map" in raw:
        raise ModelLoadError(f"{directory} wants to run its own code (auto_map). Use a model that transformers knows.")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        # transformers raises whatever its classes do with a field; all of it means the same here.
        raise ModelLoadError(f"transformers cannot read {directory / 'config.json'}: {error}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelLoadError(f"{directory} holds a {config.model_type!r} model, which is no chat model (causal LM).")
    return config


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({error}). Copy the model again.") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object. Copy the model again.")
    return value


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that together are the model."""
    index = _read_json(directory / "model.safetensors.index.json")
    if index is not None:
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ModelLoadError(f"{directory} has an index without a weight_map. Copy the model again.")
        shards = sorted({str(name) for name in names.values()})
        if any(Path(name).name != name or not name.endswith(".safetensors") for name in shards):
            raise ModelLoadError(f"{directory} has an index that names files outside it or no safetensors.")
        missing = [name for name in shards if not (directory / name).is_file()]
        if missing:
            raise ModelLoadError(f"{directory} lacks {', '.join(missing)}. Copy the model again, all shards of it.")
        return [directory / name for name in shards]
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    # auto-gptq named its one file after the settings.
    others = sorted(directory.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if others:
        raise ModelLoadError(f"{directory} has {len(others)} safetensors files and no index. Copy the model again.")
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        raise ModelLoadError(
            f"{directory} holds pickle files only (.bin, .pt), which can run code when read and are refused. "
            "Use a safetensors version of the model, or save it again with save_pretrained."
        )
    raise ModelLoadError(f"{directory} holds no *.safetensors. Copy the model again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How the quantised layers are stored."""

    bits: int
    group_size: int
    is_v1: bool


def read_quantisation(directory: Path, config: Any) -> Quantisation | None:
    """Return what config.json or quantize_config.json says; None for a model that is not quantised."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        settings = _read_json(directory / "quantize_config.json")
    elif not isinstance(settings, Mapping):
        settings = settings.to_dict()
    if settings is None:
        return None
    method = str(settings.get("quant_method") or settings.get("method") or "gptq")
    if method != "gptq":
        raise ModelLoadError(f"{directory} is quantised with {method!r}; GPTQ and unquantised models are served.")
    form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise ModelLoadError(f"{directory} has GPTQ format {form!r}; 'gptq' and 'gptq_v2' can be read.")
    try:
        bits, group_size = int(settings["bits"]), int(settings["group_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{directory} does not say bits and group_size of its quantisation.") from error
    return Quantisation(bits=bits, group_size=group_size, is_v1=form == "gptq")


def read_eos_tokens(directory: Path, config: Any) -> frozenset[int]:
    """Return the tokens that end an answer, as the checkpoint names them."""
    generation = _read_json(directory / "generation_config.json") or {}
    found: set[int] = set()
    for value in (generation.get("eos_token_id"), getattr(config.get_text_config(), "eos_token_id", None)):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                found.add(item)
    return frozenset(found)


class TensorFiles:
    """The tensors of all files, by name; read one at a time."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._open: list[Any] = []
        self._where: dict[str, tuple[Any, Path]] = {}

    def __enter__(self) -> TensorFiles:
        for path in self._files:
            try:
                # Closed by __exit__, for the tensors are read while it is open.
                handle = safe_open(path, framework="pt").__enter__()
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelLoadError(f"{path} is damaged or cut short ({error}). Copy the model again.") from error
            self._open.append(handle)
            self._where.update((name, (handle, path)) for name in handle.keys())  # noqa: SIM118 - no mapping
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._open:
            handle.__exit__(None, None, None)

    @property
    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self._where)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        handle, path = self._where[name]
        try:
            return handle.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelLoadError(f"{path} is damaged at {name} ({error}). Copy the model again.") from error
