"""Join what a decoder layer computes apart: products of one input, gate and activation, norms, rotary positions.

Works on module trees and not on architectures: a part is replaced only where its shape is the usual one **and** its own
output on random input is what the joined form gives. Whatever looks different stays as transformers has it.

The products are joined on every device (one large product instead of two or three small ones); the small steps on CUDA
alone, by Triton kernels.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.model.gptq import DenseGPTQLinear

log = logging.getLogger(__name__)

_QKV = ("q_proj", "k_proj", "v_proj")
_GATE_UP = ("gate_proj", "up_proj")
_PROBE_TOKENS = 3

Joiner = Callable[[Sequence[nn.Module]], nn.Module | None]


class _First(nn.Module):
    """Computes the joined product, gives its own part and leaves the others theirs."""

    def __init__(self, joined: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.joined = joined
        self.sizes = list(sizes)
        self.parts: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        own, *self.parts = self.joined(x).split(self.sizes, dim=-1)
        return own


class _Next(nn.Module):
    """Gives the part that `_First` computed for it just before."""

    def __init__(self, first: _First) -> None:
        super().__init__()
        self._first = (first,)  # in a tuple, so that it is no submodule twice

    def forward(self, x: Tensor) -> Tensor:
        return self._first[0].parts.pop(0)


class _GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) with gate and up in one product."""

    def __init__(self, gate_up: nn.Module, down: nn.Module, *, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_up, self.down_proj = gate_up, down
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self._activation(self.gate_up(x)))


class _Norm(nn.Module):
    """A root-mean-square norm in one kernel."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        from workers.model.kernels.elementwise import rms_norm

        return rms_norm(x, self.weight, self.eps)


@torch.inference_mode()
def fuse(model: nn.Module, join_quantised: Joiner | None = None) -> int:
    """Replace what can be joined in ``model``; return how many parts were.

    ``join_quantised`` joins layers of a quantised kind along their outputs, or returns None when it cannot.
    """
    device = next(model.parameters()).device
    has_kernels = device.type == "cuda" and _has_triton()
    count = 0
    for parent in list(model.modules()):
        if all(hasattr(parent, name) for name in (*_GATE_UP, "down_proj", "act_fn")):
            count += _join_mlp(parent, join_quantised, has_kernels=has_kernels)
        if all(hasattr(parent, name) for name in _QKV):
            count += _join_qkv(parent, join_quantised)
        if has_kernels:
            count += sum(_replace_norm(parent, name, child) for name, child in list(parent.named_children()))
    if has_kernels:
        count += _replace_rotation(model)
    log.info("%d parts of the model are joined.", count)
    return count


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        log.warning("Triton is not installed: the small steps between the products stay apart.")
        return False
    return True


def _join(layers: Sequence[nn.Module], join_quantised: Joiner | None) -> nn.Module | None:
    if all(type(layer) in (nn.Linear, DenseGPTQLinear) for layer in layers):
        return _join_dense(layers)  # type: ignore[arg-type]
    return join_quantised(layers) if join_quantised is not None else None


def _join_dense(layers: Sequence[nn.Linear]) -> nn.Linear | None:
    if len({layer.bias is None for layer in layers}) != 1 or len({layer.weight.dtype for layer in layers}) != 1:
        return None
    weight = torch.cat([layer.weight for layer in layers])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=layers[0].bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if layers[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return joined


def _out_features(layer: nn.Module) -> int:
    return layer.out_features  # type: ignore[return-value]


def _join_qkv(parent: Any, join_quantised: Joiner | None) -> int:
    layers = [getattr(parent, name) for name in _QKV]
    joined = _join(layers, join_quantised)
    if joined is None:
        return 0
    first = _First(joined, [_out_features(layer) for layer in layers])
    parent.q_proj, parent.k_proj, parent.v_proj = first, _Next(first), _Next(first)
    return 1


def _join_mlp(parent: Any, join_quantised: Joiner | None, *, has_kernels: bool) -> int:
    gate, up = (getattr(parent, name) for name in _GATE_UP)
    joined = _join([gate, up], join_quantised)
    if joined is None:
        return 0
    act = parent.act_fn

    def apart(both: Tensor) -> Tensor:
        first, second = both.chunk(2, dim=-1)
        return act(first) * second

    activation: Callable[[Tensor], Tensor] = apart
    weight = next(parent.down_proj.parameters(), None)
    dtype = weight.dtype if weight is not None else torch.bfloat16
    if has_kernels:
        from workers.model.kernels.elementwise import silu_gate

        sample = torch.randn(_PROBE_TOKENS, joined.out_features, device="cuda", dtype=dtype)  # type: ignore[call-overload]
        if torch.allclose(silu_gate(sample), apart(sample), rtol=2e-2, atol=1e-2):
            activation = silu_gate
    x = torch.randn(1, _PROBE_TOKENS, joined.in_features, dtype=dtype, device=_device_of(joined))  # type: ignore[call-overload]
    fused = _GatedMLP(joined, parent.down_proj, activation=activation)
    before, after = parent(x), fused(x)
    if not _are_close(before, after):
        return 0
    parent.forward = fused.forward
    parent.fused = fused
    del parent.gate_proj, parent.up_proj
    return 1


def _replace_norm(parent: nn.Module, name: str, norm: nn.Module) -> int:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = getattr(norm, "weight", None)
    if not type(norm).__name__.endswith("RMSNorm") or not isinstance(eps, float) or weight is None or weight.dim() != 1:
        return 0
    fused = _Norm(weight, eps)
    x = torch.randn(_PROBE_TOKENS, weight.shape[0], dtype=weight.dtype, device=weight.device) * 3
    if not _are_close(norm(x), fused(x)):
        return 0
    setattr(parent, name, fused)
    return 1


def _replace_rotation(model: nn.Module) -> int:
    """Let the model's module rotate by our kernel on CUDA, where its own function gives the same."""
    module = sys.modules[type(model).__module__]
    original = getattr(module, "apply_rotary_pos_emb", None)
    if original is None or hasattr(original, "is_ours"):
        return int(original is not None)
    from workers.model.kernels.elementwise import rotate

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        usual = not args and not kwargs and q.is_cuda and q.shape[0] == 1 and cos.shape[-1] == q.shape[-1]
        if usual and q.stride(-1) == k.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1:
            return rotate(q, k, cos, sin)
        return original(q, k, cos, sin, *args, **kwargs)

    dtype = next(model.parameters()).dtype
    q, k = (torch.randn(1, _PROBE_TOKENS, heads, 64, device="cuda", dtype=dtype).transpose(1, 2) for heads in (4, 2))
    angle = torch.rand(1, _PROBE_TOKENS, 32, device="cuda").repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    try:
        same = all(
            _are_close(left, right)
            for left, right in zip(original(q, k, cos, sin), rotate(q, k, cos, sin), strict=True)
        )
    except (TypeError, RuntimeError, ValueError):
        return 0  # an architecture whose positions work otherwise
    if not same:
        return 0
    rotated.is_ours = True  # type: ignore[attr-defined]
    module.apply_rotary_pos_emb = rotated  # type: ignore[attr-defined]
    return 1


def _device_of(layer: nn.Module) -> torch.device:
    return next((item.device for item in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))


def _are_close(left: Tensor, right: Tensor) -> bool:
    """Say whether two ways to compute agree as far as the type rounds."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(left.dtype, 3e-2)
    scale = left.float().abs().max().clamp_min(1e-6)
    return bool(((left.float() - right.float()).abs().max() / scale < tolerance).item())
