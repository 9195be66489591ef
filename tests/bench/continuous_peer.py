"""transformers' continuous batching with our Triton kernels as its attention, so that this is not what differs.

Its cache, its scheduler and its graphs stay its own; its attention writes by `cache_write` and reads by `paged_decode`
and `paged_prefill`, as our engine does. Full attention alone, Triton needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, ContinuousBatchingManager, GenerationConfig

from tests.bench.bench_batching import batching_config, collect
from tests.bench.mixed import STEP_TOKENS, Request
from workers.engine.interfaces import BLOCK_TOKENS
from workers.model.kernels.cache_write import cache_write
from workers.model.kernels.paged_decode import paged_decode
from workers.model.kernels.paged_prefill import paged_prefill

# "flash" tells transformers that no mask is wanted; up to 5.17 it asks for "paged|" too, later it takes that away.
_PREFIX = "paged|" if "paged|sdpa" in AttentionInterface().valid_keys() else ""
PEER_NAME = f"{_PREFIX}chatproject_flash"
_NOWHERE = -1


@contextmanager
def continuous_peer(
    model: Any, *, longest: int, max_rows: int, num_blocks: int = 2048, step_tokens: int = STEP_TOKENS
) -> Iterator[Callable[[list[Request]], tuple[float, list[list[int]]]]]:
    """Give a function that returns the seconds until all its requests are answered, and the answers.

    Up to ``max_rows`` run at once, each of at most ``longest`` tokens, prompt and answer. A prompt that comes again is
    computed again. Graphs are captured as their shapes first come, so what is timed should have run before.
    """
    is_cuda = model.device.type == "cuda"
    before: str = model.config._attn_implementation
    model.config._attn_implementation = PEER_NAME  # `set_attn_implementation` would look for a "flash" package.
    try:
        manager: ContinuousBatchingManager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=longest, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=batching_config(
                num_blocks=num_blocks, max_batch_tokens=step_tokens, max_requests_per_batch=max_rows,
                allow_block_sharing=False, use_cuda_graph=is_cuda, use_async_batching=is_cuda,
            ),
        )  # fmt: skip
        # Steps of decodes alone get block tables. Asked for in the settings, they are refused to all but flash-attn.
        manager.continuous_batching_config.max_blocks_per_request = -(-longest // BLOCK_TOKENS)

        def run(requests: list[Request]) -> tuple[float, list[list[int]]]:
            began = time.perf_counter()
            names = [manager.add_request(prompt, max_new_tokens=count) for prompt, count in requests]
            answers = collect(manager, names)
            seconds = time.perf_counter() - began
            if is_cuda:
                # A step ahead of the last answers still runs, and products count in one buffer for all (`counters`).
                torch.cuda.synchronize()
            return seconds, answers

        try:
            manager.warmup()
            manager.start()
            yield run
        finally:
            manager.stop(block=True, timeout=60)
    finally:
        model.config._attn_implementation = before


# T tokens of the step, N sequences of it, H query heads, K kv heads, D head dim
class _Step:
    """Where the sequences of one step lie. Made of tensors on the device alone, so that a graph may capture it."""

    def __init__(self, num_tokens: int, options: dict[str, Any]) -> None:
        cu_keys: Tensor = _only(options["cu_seq_lens_k"])  # (N + 1,) int32; of padding: no positions
        positions = cu_keys.diff()  # (N,) with the step's own
        self.ends: Tensor | None = None
        self.num_rows = positions.shape[0]
        if options["block_table"] is not None:
            assert self.num_rows == num_tokens
            self.tables: Tensor = options["block_table"][0]  # (N, blocks) int32
            self.lengths = positions
            last = (positions - 1).clamp(min=0).long()
            blocks = self.tables.gather(1, (last // BLOCK_TOKENS).unsqueeze(1)).squeeze(1)
            slots = blocks * BLOCK_TOKENS + last % BLOCK_TOKENS
            self.slots = torch.where(positions > 0, slots, _NOWHERE)  # (T,) int64
            return
        self.slots = options["write_index"][0]
        # Nothing to read: all sequences begin, and lie where they are written.
        index: Tensor = options["read_index"][0] if options["read_index"][0].numel() else self.slots
        longest: int = _only(options["max_length_k"] if "max_length_k" in options else options["max_seqlen_k"])
        firsts = torch.arange(0, longest, BLOCK_TOKENS, device=index.device)
        places = (cu_keys[:-1].unsqueeze(1) + firsts).clamp(max=index.numel() - 1)
        self.tables = (index[places] // BLOCK_TOKENS).int()
        # Sequences of one token lead. To `paged_decode` the others are of no length, to `paged_prefill` these are.
        cu_queries: Tensor = options["cu_seq_lens_q"]
        sizes = cu_queries.diff()
        is_decode = (sizes == 1).int().cumprod(0, dtype=torch.int32)
        self.lengths = positions * is_decode
        self.ends = torch.maximum(cu_queries, is_decode.sum(dtype=torch.int32))
        self.starts = positions - sizes

    def attend(
        self,
        query: Tensor,  # (T, H, D)
        keys: Tensor,  # (slots, K, D)
        values: Tensor,  # (slots, K, D)
        scaling: float | None,
    ) -> Tensor:
        """Return (T, H, D)."""
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        rows = self.num_rows
        paged_decode(query[:rows], keys, values, self.tables, self.lengths, scaling=scaling, out=out[:rows])
        if self.ends is not None:
            paged_prefill(
                query, keys, values, self.tables, self.ends, self.starts, longest=query.shape[0], scaling=scaling,
                out=out,
            )  # fmt: skip
        return out


class _Attention:
    """The attention function. The first layer's call makes the step for all, the last lets it go with its memory."""

    def __init__(self) -> None:
        self._step: _Step | None = None

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,  # (1, H, T, D)
        key: Tensor,  # (1, K, T, D)
        value: Tensor,  # (1, K, T, D)
        attention_mask: Tensor | None,
        *,
        cache: Any,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Return (1, T, H, D)."""
        assert attention_mask is None
        assert sliding_window is None
        layer: int = module.layer_idx  # type: ignore[assignment]
        if layer == 0:
            self._step = _Step(query.shape[2], options)
        step = self._step
        assert step is not None
        if layer == module.config.num_hidden_layers - 1:  # type: ignore[union-attr]
            self._step = None
        keys, values = _layer(cache, layer)
        cache_write(key[0].transpose(0, 1), value[0].transpose(0, 1), step.slots, keys, values)
        return step.attend(query[0].transpose(0, 1), keys, values, scaling).unsqueeze(0), None


def _layer(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """Return keys and values (slots, K, D) of a layer. Tables count in them as block tables do: pages of 16."""
    if hasattr(cache, "layer_to_allocator"):
        pages = cache.layer_to_allocator[layer].get_cache_for_block_table(layer)
        return pages[0].flatten(0, 1), pages[1].flatten(0, 1)
    _, place = cache.layer_index_to_group_indices[layer]  # up to 5.17
    return cache.key_cache[place], cache.value_cache[place]


def _only(item: Any) -> Any:
    """Return what there is of the one kind of attention; up to 5.17 it comes without its name."""
    return item["full_attention"] if isinstance(item, dict) else item


AttentionInterface.register(PEER_NAME, _Attention())
