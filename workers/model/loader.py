"""Load a checkpoint directory (or a hub id) into a transformers model class, quantised layers included.

Not by transformers' own GPTQ path, which needs packages that we do not use. Whatever is wrong becomes a ModelLoadError
that says what to do. Which layers are quantised is read off the tensors themselves (``<layer>.qweight``), not off lists
in the config. Knows nothing of serving.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from workers.errors import ModelLoadError
from workers.model import kernel_choice
from workers.model.attention import ATTENTION_NAME
from workers.model.checkpoint import (
    Quantisation,
    TensorFiles,
    find_directory,
    read_config,
    read_eos_tokens,
    read_quantisation,
    weight_files,
)
from workers.model.device import choose_device
from workers.model.fusion import fuse
from workers.model.gptq import BadQuantisation, DenseGPTQLinear, GPTQTensors, PackedGPTQLinear
from workers.model.gptq_int4 import Int4Linear, is_possible
from workers.model.prepacked import prepack_all

log = logging.getLogger(__name__)

Backend = Literal["auto", "dense", "int4", "packed"]

_LEAST_INT4_WIDTH = 512  # narrower layers were never faster by integers
_QUANTISED_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready for inference, and where its files are (the tokenizer's, too)."""

    model: nn.Module
    config: Any  # transformers.PreTrainedConfig
    directory: Path
    device: torch.device
    dtype: torch.dtype
    eos_tokens: frozenset[int]
    num_quantised: int  # layers


def load_model(
    source: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    backend: Backend = "dense",
) -> LoadedModel:
    """Load from a directory or hub id. Raises ModelLoadError.

    ``backend`` computes the quantised layers: *dense* unpacks them once; *int4* keeps the integers alone, and *packed*
    does for whatever int4 cannot take; *auto* is int4 on CUDA where Triton is there, else dense, and on the CPU int4 as
    well for the row counts at which a measurement has it faster. Products of one input are then joined (`fusion`).
    """
    chosen_device = choose_device(device)
    chosen_dtype = dtype or (torch.bfloat16 if chosen_device.type == "cuda" else torch.float32)
    directory = find_directory(source)
    config = read_config(directory)
    files = weight_files(directory)
    quantisation = read_quantisation(directory, config)
    model = _empty_model(config, chosen_dtype)
    with TensorFiles(files) as checkpoint:
        num_quantised = _fill(model, checkpoint, quantisation, chosen_dtype, chosen_device, backend)
    model.tie_weights()
    _refuse_missing(model, directory)
    _move_buffers(model, chosen_device)
    model.eval().requires_grad_(False)
    fuse(model, _join_quantised if chosen_device.type == "cuda" else None)
    prepack_all(model)
    if chosen_device.type == "cuda" and _has_triton():
        _choose_kernels(model, chosen_dtype)
    log.info("Loaded %s on %s: %d quantised layers.", directory.name, chosen_device, num_quantised)
    return LoadedModel(
        model=model,
        config=config,
        directory=directory,
        device=chosen_device,
        dtype=chosen_dtype,
        eos_tokens=read_eos_tokens(directory, config),
        num_quantised=num_quantised,
    )


def _empty_model(config: Any, dtype: torch.dtype) -> Any:
    # transformers must not see it: its own GPTQ path needs packages that we do not use.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        with _parameters_on_meta():
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    except Exception as error:
        # A shape that cannot be built fails in any way torch likes.
        raise ModelLoadError(f"transformers cannot build the model that config.json describes: {error}") from error


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules without memory for parameters. Buffers are real: rotary tables are in no checkpoint."""
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _fill(
    model: nn.Module,
    checkpoint: TensorFiles,
    quantisation: Quantisation | None,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
) -> int:
    names = checkpoint.names
    layers = sorted(name.removesuffix(".qweight") for name in names if name.endswith(".qweight"))
    if layers and quantisation is None:
        raise ModelLoadError("The checkpoint holds GPTQ tensors, but neither config.json nor quantize_config.json says "
                             "bits and group_size. Copy the model again.")  # fmt: skip
    for layer in layers:
        assert quantisation is not None
        parts = {part: checkpoint.read(f"{layer}.{part}") for part in _QUANTISED_PARTS if f"{layer}.{part}" in names}
        names -= {f"{layer}.{part}" for part in parts}
        _replace(model, layer, parts, quantisation, dtype, device, backend)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers())
    unexpected = []
    for name in sorted(names):
        if name in parameters:
            _set_parameter(model, name, checkpoint.read(name), dtype, device)
        elif name in buffers:
            _set_buffer(model, name, checkpoint.read(name))
        elif not name.endswith("rotary_emb.inv_freq"):  # Older writers stored the table that we compute.
            unexpected.append(name)
    if unexpected:
        raise ModelLoadError(
            f"The checkpoint has {len(unexpected)} tensors that the model has no place for, such as {unexpected[0]}. "
            "config.json and the weights do not belong together, or the model is of a kind that is not supported."
        )
    return len(layers)


def _replace(
    model: nn.Module,
    layer: str,
    parts: dict[str, Tensor],
    quantisation: Quantisation,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
) -> None:
    parent_name, _, attribute = layer.rpartition(".")
    try:
        linear = model.get_submodule(layer)
        parent = model.get_submodule(parent_name)
    except AttributeError as error:
        raise ModelLoadError(f"The checkpoint quantises {layer}, which config.json's model does not have.") from error
    if not isinstance(linear, nn.Linear):
        raise ModelLoadError(f"The checkpoint quantises {layer}, which is a {type(linear).__name__}, no Linear.")
    lacking = [part for part in ("qweight", "qzeros", "scales") if part not in parts]
    if lacking:
        raise ModelLoadError(f"The checkpoint lacks {', '.join(lacking)} of {layer}. Copy the model again.")
    bias = parts.get("bias")
    if linear.bias is None and bias is not None:
        # gptqmodel and auto-gptq write zeros where the layer has no bias.
        if bool(bias.any()):
            raise ModelLoadError(f"The checkpoint has a bias for {layer}, which config.json's model has not.")
        bias = None
    elif linear.bias is not None and bias is None:
        raise ModelLoadError(f"The checkpoint lacks the bias of {layer}. Copy the model again.")
    try:
        tensors = GPTQTensors.read(
            qweight=parts["qweight"], qzeros=parts["qzeros"], scales=parts["scales"], g_idx=parts.get("g_idx"),
            bias=bias, in_features=linear.in_features, out_features=linear.out_features,
            bits=quantisation.bits, group_size=quantisation.group_size, is_v1=quantisation.is_v1,
        )  # fmt: skip
    except BadQuantisation as error:
        raise ModelLoadError(f"The quantised layer {layer} cannot be read: {error}.") from error
    setattr(parent, attribute, quantised_layer(tensors, dtype, device, backend))


def quantised_layer(tensors: GPTQTensors, dtype: torch.dtype, device: torch.device, backend: Backend) -> nn.Module:
    """Return the module that computes the layer with this backend; see `load_model`."""
    if device.type == "cuda" and backend in ("auto", "int4") and _has_triton():
        from workers.model.gptq_triton import TritonInt4Linear
        from workers.model.gptq_triton import is_possible as can_triton

        if can_triton(tensors):
            return TritonInt4Linear(tensors, dtype=dtype, device=device)
    can_int4 = device.type == "cpu" and is_possible(tensors)
    if backend == "int4" and can_int4:
        return Int4Linear(tensors, few_rows=0, dense=None, dtype=dtype)
    if backend in ("int4", "packed"):
        return PackedGPTQLinear(tensors, dtype=dtype, device=device)
    layer = DenseGPTQLinear.of(tensors, dtype=dtype, device=device)
    if backend == "auto" and can_int4 and min(layer.in_features, layer.out_features) >= _LEAST_INT4_WIDTH:
        rows = kernel_choice.few_rows(tensors, layer)
        if rows:
            return Int4Linear(tensors, few_rows=rows, dense=layer, dtype=dtype)
    return layer


def _join_quantised(layers: Sequence[nn.Module]) -> nn.Module | None:
    if not _has_triton():
        return None
    from workers.model.gptq_triton import TritonInt4Linear, join

    if not all(isinstance(layer, TritonInt4Linear) for layer in layers):
        return None
    return join(layers)


def _choose_kernels(model: nn.Module, dtype: torch.dtype) -> None:
    from workers.model import triton_choice
    from workers.model.gptq_triton import TritonInt4Linear

    triton_choice.tune([module for module in model.modules() if isinstance(module, TritonInt4Linear)], dtype)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _set_parameter(model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    expected = getattr(module, attribute)
    if tensor.shape != expected.shape:
        raise ModelLoadError(
            f"{name} has shape {tuple(tensor.shape)} where config.json asks for {tuple(expected.shape)}. "
            "config.json and the weights do not belong together."
        )
    if not tensor.is_floating_point():
        raise ModelLoadError(f"{name} holds {tensor.dtype}, which is no type of a plain weight.")
    # A copy: the file may be replaced while it is mapped.
    tensor = tensor.to(device, dtype, copy=True)
    setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))


def _set_buffer(model: nn.Module, name: str, tensor: Tensor) -> None:
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    expected = getattr(module, attribute)
    if tensor.shape != expected.shape:
        raise ModelLoadError(f"{name} has shape {tuple(tensor.shape)} where {tuple(expected.shape)} was expected.")
    setattr(module, attribute, tensor.to(expected.dtype, copy=True))


def _refuse_missing(model: nn.Module, directory: Path) -> None:
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise ModelLoadError(
            f"{directory} lacks {len(missing)} tensors that its config.json asks for, such as {missing[0]}. "
            "Copy the model again."
        )


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
