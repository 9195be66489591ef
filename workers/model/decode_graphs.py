"""Decode steps on CUDA: replayed from graphs, and begun before the engine asks for them.

A step of few rows is hundreds of kernels of a few microseconds, which Python launches slower than the GPU computes
them; a CUDA graph per number of rows (rounded up) launches all at once. And since a row that got a token almost always
decodes next, its next forward begins as soon as the token is known, while the engine, the text and the publisher still
work on the last one. Only the forward runs ahead, so what is chosen from it does not change. A row that then does not
come, or comes otherwise, wrote one position of its own last block that nobody reads.

Knows rows, the model and its cache. Knows nothing of sampling. Owned by the engine thread.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.engine.interfaces import BLOCK_TOKENS, Row
from workers.model.attention import attending
from workers.model.kernel_plan import DecodeBuffers
from workers.model.kernels.paged_decode import choose_splits
from workers.model.kv_cache import KVCache

log = logging.getLogger(__name__)

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class _Ahead:
    """One row of a forward that runs, or ran, ahead."""

    place: int
    token: int
    start: int
    blocks: tuple[int, ...]


class DecodeGraphs:
    """The captured graphs, by number of rows, and the forward that runs ahead."""

    def __init__(self, model: nn.Module, cache: KVCache, *, max_rows: int, context_tokens: int) -> None:
        """Allocate nothing large; `capture` does."""
        self._model, self._cache = model, cache
        self._device = next(model.parameters()).device
        self._max_blocks = -(-context_tokens // BLOCK_TOKENS)
        self._context_tokens = context_tokens
        self._sizes = [size for size in _SIZES if size < max_rows]
        self._sizes.append(max_rows)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph | None, DecodeBuffers, Tensor | None]] = {}
        self._is_cuda = self._device.type == "cuda"
        self._filled = torch.cuda.Event() if self._is_cuda else None
        self._ahead: dict[str, _Ahead] = {}
        self._logits: Tensor | None = None  # of the forward that runs ahead

    def capture(self) -> None:
        """Capture every size, the largest first, so that all share its memory. Takes seconds."""
        pool: Any = None
        for size in reversed(self._sizes):
            buffers = DecodeBuffers(size, self._max_blocks, self._device, self._cache)
            if not self._is_cuda:
                self._graphs[size] = (None, buffers, None)
                continue
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._forward(buffers)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._forward(buffers)
            pool = pool or graph.pool()
            self._graphs[size] = (graph, buffers, logits)
        log.info("Captured decode steps of %s rows.", ", ".join(map(str, self._sizes)))

    def splits(self, num_rows: int) -> tuple[int, int]:
        """Return how so many decodes among prefills are split: as in a graph, whose kernels are compiled."""
        size = next(size for size in self._sizes if size >= num_rows)
        plan = self._graphs[size][1].plan
        return choose_splits(size, self._cache.layer(0)[0].shape[1], plan.tables.shape[1] * BLOCK_TOKENS)

    def run(self, rows: Sequence[Row]) -> Tensor:
        """Compute the forward of ``rows``, which all decode; return logits (R, V) in the model's type.

        They are overwritten by the next call of `run` or `begin`.
        """
        self.forget()
        return self._replay(
            [row.tokens[0] for row in rows], [row.start for row in rows], [row.block_table for row in rows]
        )

    def begin(self, rows: Sequence[Row], tokens: Sequence[int | None]) -> None:
        """Start the next forward of ``rows``, which got ``tokens``, as far as their blocks reach."""
        self.forget()
        next_tokens: list[int] = []
        starts: list[int] = []
        tables: list[tuple[int, ...]] = []
        for row, token in zip(rows, tokens, strict=True):
            start = row.start + len(row.tokens)
            table = row.block_table
            if token is None or start >= len(table) * BLOCK_TOKENS or start >= self._context_tokens:
                continue
            self._ahead[row.sequence_id] = _Ahead(len(tables), token, start, table)
            next_tokens.append(token)
            starts.append(start)
            tables.append(table)
        if tables:
            self._logits = self._replay(next_tokens, starts, tables)

    def take(self, rows: Sequence[Row]) -> Tensor | None:
        """Return the logits (R, V) of ``rows`` if they are what runs ahead, all of them; else None."""
        if self._logits is None:
            return None
        places = [self._place(row) for row in rows]
        if any(place is None for place in places):
            return None
        if places == list(range(len(places))):
            return self._logits[: len(places)]
        return self._logits[torch.tensor(places, device=self._device)]

    def forget(self) -> None:
        """Let what runs ahead be for nothing."""
        self._ahead.clear()
        self._logits = None

    def _place(self, row: Row) -> int | None:
        ahead = self._ahead.get(row.sequence_id)
        if ahead is None or ahead.start != row.start or row.tokens != (ahead.token,):
            return None
        table = row.block_table
        is_same = table is ahead.blocks or table[: len(ahead.blocks)] == ahead.blocks
        return ahead.place if is_same else None

    def _replay(self, tokens: Sequence[int], starts: Sequence[int], tables: Sequence[tuple[int, ...]]) -> Tensor:
        size = next(size for size in self._sizes if size >= len(tokens))
        graph, buffers, logits = self._graphs[size]
        if self._filled is not None:
            # The copy of the fill before may still read the host's side.
            self._filled.synchronize()
        buffers.fill(tokens, starts, tables)
        if self._filled is not None:
            self._filled.record()
        if graph is None or logits is None:
            return self._forward(buffers)[: len(tokens)]
        graph.replay()
        return logits[: len(tokens)]

    @torch.inference_mode()
    def _forward(self, buffers: DecodeBuffers) -> Tensor:
        plan = buffers.plan
        with attending(plan):
            output = self._model(
                input_ids=plan.tokens.unsqueeze(0), position_ids=plan.positions.unsqueeze(0), use_cache=False,
                logits_to_keep=0,
            )  # fmt: skip
        return output.logits[0]  # (size, V)
