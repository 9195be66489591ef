"""Attention of one step over the paged cache, entered through transformers' attention interface.

Any decoder class that calls the interface works: its layers hand over queries, keys and values of the step's tokens,
packed in one flat row; what belongs to whom stands in the step's StepPlan, made once and used by every layer.
Knows nothing of scheduling, sampling or model classes.

Rows that decode are one padded batch; each chunk of prefill goes by itself. A plan that brings its own kernels
(`kernel_plan`, on a GPU) computes its attention itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from workers.engine.interfaces import BLOCK_TOKENS, Row
from workers.model.decode_cache import GroupPlan
from workers.model.kv_cache import KVCache, LayerShape

ATTENTION_NAME = "chatproject_paged"
_HARMLESS_TENSORS = {"position_ids", "cache_position", "position_embeddings", "cos", "sin", "input_ids"}


class UnsupportedAttention(ValueError):
    """A layer asks for an attention that is not computed here."""


# T tokens of the step, R rows that decode, N longest of them, C tokens of a chunk, S positions it sees,
# H query heads, K kv heads, D head dim
class StepPlan:
    """Who reads and writes where in one step. Rows that decode come first, then the chunks."""

    def __init__(
        self,
        cache: KVCache,
        decodes: Sequence[Row],
        chunks: Sequence[Row],
        device: torch.device,
        groups: Sequence[GroupPlan] = (),
    ) -> None:
        """Plan a step. With ``groups`` (of the DecodeCache) ``decodes`` are in their order, and nothing is gathered."""
        self.cache = cache
        self.groups = groups
        self.num_decodes = len(decodes)
        self._device = device
        self._decode_masks: dict[int | None, Tensor | None] = {}
        tokens = [row.tokens[0] for row in decodes]
        positions = [row.start for row in decodes]
        slots = [_slot(row, row.start) for row in decodes]
        self.chunks: list[ChunkPlan] = []
        for row in chunks:
            begin, end = len(tokens), len(tokens) + len(row.tokens)
            tokens.extend(row.tokens)
            positions.extend(range(row.start, row.start + len(row.tokens)))
            slots.extend(_slot(row, position) for position in range(row.start, row.start + len(row.tokens)))
            self.chunks.append(ChunkPlan(row, begin, end, device))
        self.tokens, self.positions, self.slots = torch.tensor([tokens, positions, slots], device=device)  # each (T,)
        if decodes and not groups:
            self._plan_decodes(decodes)

    def _plan_decodes(self, decodes: Sequence[Row]) -> None:
        num_blocks = max(row.start // BLOCK_TOKENS + 1 for row in decodes)
        padding = (0,) * num_blocks
        tables = torch.tensor([(row.block_table[:num_blocks] + padding)[:num_blocks] for row in decodes])  # (R, blocks)
        offsets = torch.arange(BLOCK_TOKENS)
        longest = max(row.start for row in decodes) + 1
        slots = (tables.unsqueeze(2) * BLOCK_TOKENS + offsets).view(len(decodes), -1)[:, :longest]  # (R, N)
        last = torch.tensor([row.start for row in decodes]).unsqueeze(1)  # (R, 1)
        seen = torch.arange(longest).unsqueeze(0) <= last  # (R, N)
        slots = torch.where(seen, slots, self.cache.null_slot)
        self.decode_slots = slots.reshape(-1).to(self._device)  # (R * N,)
        self._last, self._seen = last, seen

    def decode_mask(self, window: int | None) -> Tensor | None:
        """Return which positions each decoding row sees: (R, 1, 1, N) bool, or None when all see all."""
        if window not in self._decode_masks:
            seen = self._seen
            if window is not None:
                seen = seen & (torch.arange(seen.shape[1]).unsqueeze(0) > self._last - window)
            mask = None if bool(seen.all()) else seen[:, None, None, :].to(self._device)
            self._decode_masks[window] = mask
        return self._decode_masks[window]


class ChunkPlan:
    """One chunk of prefill: tokens ``begin`` to ``end`` of the step, after ``start`` that the cache holds."""

    def __init__(self, row: Row, begin: int, end: int, device: torch.device) -> None:
        self.begin, self.end, self.start = begin, end, row.start
        self._device = device
        self._masks: dict[int, Tensor] = {}
        self.past_slots: Tensor | None = None
        if row.start:
            self.past_slots = torch.tensor([_slot(row, position) for position in range(row.start)], device=device)

    def mask(self, window: int | None) -> Tensor | None:
        """Return (C, S) bool, or None where plain causal is right."""
        size = self.end - self.begin
        total = self.start + size
        if self.start == 0 and (window is None or window >= total):
            return None
        key = total if window is None else min(window, total)
        if key not in self._masks:
            query = torch.arange(self.start, total, device=self._device).unsqueeze(1)  # (C, 1)
            keys = torch.arange(total, device=self._device).unsqueeze(0)  # (1, S)
            self._masks[key] = (keys <= query) & (keys > query - key)
        return self._masks[key]


class OwnAttention(Protocol):
    """A plan that writes the cache and computes a step's attention by itself."""

    def attend(
        self,
        layer: int,
        query: Tensor,  # (T, H, D)
        key: Tensor,  # (T, K, D)
        value: Tensor,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Return (T, H, D)."""
        ...


class _Current(threading.local):
    plan: StepPlan | OwnAttention | None = None
    probe: dict[int, LayerShape] | None = None


_current = _Current()


@contextmanager
def attending(plan: StepPlan | OwnAttention) -> Iterator[None]:
    """Let the attention of this thread's forward belong to ``plan``."""
    _current.plan = plan
    try:
        yield
    finally:
        _current.plan = None


def probe_layers(model: Any, device: torch.device) -> list[LayerShape]:
    """Return what each layer keeps, found by running one token through the model.

    Raises UnsupportedAttention when a layer asks for what is not computed here, or does not come by here at all.
    """
    found: dict[int, LayerShape] = {}
    _current.probe = found
    try:
        one = torch.zeros(1, 1, dtype=torch.long, device=device)
        with torch.inference_mode():
            model(input_ids=one, position_ids=one, use_cache=False)
    finally:
        _current.probe = None
    config = model.config.get_text_config(decoder=True)
    if sorted(found) != list(range(config.num_hidden_layers)):
        raise UnsupportedAttention(
            f"{len(found)} of {config.num_hidden_layers} layers attend through transformers' attention interface"
        )
    kinds = getattr(config, "layer_types", None) or []
    for layer, kind in enumerate(kinds[: len(found)]):
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedAttention(f"layer {layer} is of type {kind!r}; full and sliding attention are computed")
        if kind == "sliding_attention" and found[layer].window is None:
            raise UnsupportedAttention(f"layer {layer} slides, but does not say how far it looks back")
    return [found[layer] for layer in sorted(found)]


def paged_attention(
    module: nn.Module,
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, K, T, D)
    value: Tensor,  # (1, K, T, D)
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute one layer's attention of the current step: (1, T, H, D)."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    if _current.probe is not None:
        _refuse_unknown(layer, module, kwargs)
        _current.probe[layer] = LayerShape(
            num_kv_heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3], window=sliding_window
        )
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2), None
    plan = _current.plan
    if plan is None:
        raise RuntimeError("attention outside of a step")
    keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (T, K, D)
    if not isinstance(plan, StepPlan):
        output = plan.attend(layer, query[0].transpose(0, 1), keys, values, scaling, sliding_window, softcap)
        return output.unsqueeze(0), None
    plan.cache.write(layer, plan.slots, keys, values)
    parts: list[Tensor] = []
    parts.extend(
        _attend_group(group, layer, query, keys, values, sliding_window, scaling, softcap) for group in plan.groups
    )
    if plan.num_decodes and not plan.groups:
        parts.append(_attend_decodes(plan, layer, query, sliding_window, scaling, softcap))
    parts.extend(
        _attend_chunk(plan, chunk, layer, query, key, value, sliding_window, scaling, softcap) for chunk in plan.chunks
    )
    output = parts[0] if len(parts) == 1 else torch.cat(parts)  # (T, H, D)
    return output.unsqueeze(0), None


def _attend_group(
    group: GroupPlan,
    layer: int,
    query: Tensor,
    keys: Tensor,  # (T, K, D)
    values: Tensor,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """(n, H, D) of the rows of one group."""
    rows = slice(group.begin, group.end)
    all_keys, all_values = group.extend(layer, keys[rows], values[rows])
    num_rows, num_heads, dim = group.end - group.begin, query.shape[1], query.shape[3]
    grouped = query[0, :, rows].transpose(0, 1).reshape(num_rows, all_keys.shape[1], -1, dim)  # (n, K, H / K, D)
    mask = group.mask(window, query.dtype)
    output = _attend(grouped, all_keys, all_values, mask, scaling, softcap, is_causal=False)
    return output.reshape(num_rows, num_heads, -1)


def _attend_decodes(
    plan: StepPlan, layer: int, query: Tensor, window: int | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """(R, H, D). The query heads that share a kv head are rows of one small matrix."""
    num_rows, num_heads, dim = plan.num_decodes, query.shape[1], query.shape[3]
    keys, values = plan.cache.read(layer, plan.decode_slots)
    num_kv_heads = keys.shape[1]
    keys = keys.view(num_rows, -1, num_kv_heads, dim).transpose(1, 2)  # (R, K, N, D)
    values = values.view(num_rows, -1, num_kv_heads, values.shape[2]).transpose(1, 2)
    grouped = query[0, :, :num_rows].transpose(0, 1).reshape(num_rows, num_kv_heads, -1, dim)  # (R, K, H / K, D)
    output = _attend(grouped, keys, values, plan.decode_mask(window), scaling, softcap, is_causal=False)
    return output.reshape(num_rows, num_heads, -1)


def _attend_chunk(
    plan: StepPlan,
    chunk: ChunkPlan,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """(C, H, D)."""
    queries = query[:, :, chunk.begin : chunk.end]  # (1, H, C, D)
    keys, values = key[:, :, chunk.begin : chunk.end], value[:, :, chunk.begin : chunk.end]
    if chunk.past_slots is not None:
        past_keys, past_values = plan.cache.read(layer, chunk.past_slots)
        keys = torch.cat([past_keys.transpose(0, 1).unsqueeze(0), keys], dim=2)  # (1, K, S, D)
        values = torch.cat([past_values.transpose(0, 1).unsqueeze(0), values], dim=2)
    mask = chunk.mask(window)
    output = _attend(queries, keys, values, mask, scaling, softcap, is_causal=mask is None)
    return output[0].transpose(0, 1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    *,
    is_causal: bool,
) -> Tensor:
    """(B, H, Q, D): softmax of capped, masked, scaled products, times values."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, mask, scale=scaling, is_causal=is_causal, enable_gqa=query.shape[1] != key.shape[1]
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if is_causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


def _refuse_unknown(layer: int, module: nn.Module, kwargs: dict[str, Any]) -> None:
    tensors = [name for name, item in kwargs.items() if isinstance(item, Tensor) and name not in _HARMLESS_TENSORS]
    if tensors:
        raise UnsupportedAttention(f"layer {layer} attends with {', '.join(tensors)}, which is not computed here")
    if not getattr(module, "is_causal", True):
        raise UnsupportedAttention(f"layer {layer} is not causal")


def _slot(row: Row, position: int) -> int:
    return row.block_table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS


AttentionInterface.register(ATTENTION_NAME, paged_attention)
