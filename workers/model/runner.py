"""Compute one step for any mix of decode rows and prefill chunks: the engine's ModelRunner in torch.

Knows the model, its cache and the sampler. Knows nothing of requests, lanes or text. A row that is wrong in itself
(unknown tokens, blocks that do not exist, numbers that are none) fails alone.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from chatproject.contract.errors import Failure
from chatproject.contract.messages import SamplingParams
from workers.engine.interfaces import BLOCK_TOKENS, Row, RowResult
from workers.errors import FatalEngineError, ModelLoadError, OutOfMemory
from workers.model.attention import StepPlan, UnsupportedAttention, attending, probe_layers
from workers.model.decode_cache import DecodeCache, GroupPlan
from workers.model.device import free_bytes
from workers.model.kv_cache import KVCache, block_bytes
from workers.model.loader import LoadedModel
from workers.model.logprobs import logprobs
from workers.model.penalties import Penalties
from workers.model.sampler import choose, is_usable

if TYPE_CHECKING:
    from workers.model.decode_graphs import DecodeGraphs

log = logging.getLogger(__name__)

_REJECTED = RowResult(failure=Failure.REJECTED)
_NUMERICAL = RowResult(failure=Failure.NUMERICAL)
_COMPUTED = RowResult()
_SHARE_CUDA = 0.85  # of the memory that is free after loading
_SHARE_CPU = 0.25
_SMALL_PARAMETERS = 30_000_000


class TorchRunner:
    """A ModelRunner on CPU or CUDA. Owned by the engine thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int = 32,
        context_tokens: int | None = None,
        kv_bytes: int | None = None,
        eos_tokens: Iterable[int] = (),
        cpu_threads: int | None = None,
        use_kernels: bool | None = None,
    ) -> None:
        """Size the cache: ``kv_bytes``, or a share of the free memory, and never more than all rows can fill.

        ``cpu_threads`` are this process's; None leaves torch's number, but takes one for small models.
        ``use_kernels`` attends by the Triton kernels and runs decodes ahead; None: on CUDA, where Triton is there.
        ``eos_tokens`` are added to those that the checkpoint names. Raises ModelLoadError when the model's attention
        is of a kind that is not computed here, or when the memory does not hold one sequence.
        """
        if loaded.device.type == "cpu":
            _set_threads(loaded.model, cpu_threads)
        self._model = loaded.model
        self._device = loaded.device
        config = loaded.config.get_text_config(decoder=True)
        self._vocab_size: int = config.vocab_size
        self.max_rows = max_rows
        self.eos_tokens = loaded.eos_tokens | frozenset(eos_tokens)
        try:
            shapes = probe_layers(loaded.model, loaded.device)
        except (UnsupportedAttention, AttributeError, TypeError) as error:
            raise ModelLoadError(f"{config.model_type!r} models cannot be served: {error}.") from error
        self.context_tokens = _context_tokens(config, context_tokens)
        per_block = block_bytes(shapes, loaded.dtype)
        if kv_bytes is None:
            share = _SHARE_CUDA if loaded.device.type == "cuda" else _SHARE_CPU
            kv_bytes = int(free_bytes(loaded.device) * share)
        per_sequence = -(-self.context_tokens // BLOCK_TOKENS)
        self.num_blocks = min(kv_bytes // per_block, per_sequence * max_rows)
        if self.num_blocks < 1:
            raise ModelLoadError(
                f"{kv_bytes >> 20} MiB for keys and values hold no block of {per_block >> 10} KiB. "
                "Free memory, or use a smaller model."
            )
        self.context_tokens = min(self.context_tokens, self.num_blocks * BLOCK_TOKENS)
        self.kv_bytes = self.num_blocks * per_block
        self._cache = KVCache(shapes, num_blocks=self.num_blocks, dtype=loaded.dtype, device=loaded.device)
        self._shapes, self._dtype = shapes, loaded.dtype
        if use_kernels is None:
            use_kernels = loaded.device.type == "cuda" and importlib.util.find_spec("triton") is not None
        self._graphs = self._new_graphs() if use_kernels else None
        self.runs_ahead = use_kernels
        # On a GPU gathering is cheap beside what a second copy would cost in memory.
        has_copies = loaded.device.type == "cpu" and not use_kernels
        self._decode_cache = self._new_decode_cache() if has_copies else None
        if use_kernels and loaded.device.type == "cuda":
            self._warm_up()
        self._penalties = self._new_penalties()
        self._known: dict[int, tuple[SamplingParams, bool]] = {}  # by id(): whether the parameters are usable
        log.info("KV cache: %d blocks, %d MiB.", self.num_blocks, self.kv_bytes >> 20)

    def step(self, rows: Sequence[Row]) -> list[RowResult]:
        """Return one result per row, in order.

        Raises OutOfMemory when a smaller step may do, and FatalEngineError when the device is lost.
        """
        assert len(rows) <= self.max_rows, f"{len(rows)} rows in a step of at most {self.max_rows}"
        # Two rows of one sequence in a step would write to the same places.
        seen = Counter(row.sequence_id for row in rows)
        results = [_COMPUTED if seen[row.sequence_id] == 1 and self._is_sound(row) else _REJECTED for row in rows]
        decodes = [index for index, row in enumerate(rows) if results[index] is _COMPUTED and len(row.tokens) == 1]
        chunks = [index for index, row in enumerate(rows) if results[index] is _COMPUTED and len(row.tokens) > 1]
        if not decodes and not chunks:
            return results
        try:
            if self._graphs is not None:
                self._compute_by_kernels(self._graphs, rows, decodes, chunks, results)
            else:
                self._compute(rows, decodes, chunks, results)
        except Exception as error:
            # What is kept beside the paged cache may be half written; it is made again from there.
            self._decode_cache = self._new_decode_cache() if self._decode_cache is not None else None
            self._penalties = self._new_penalties()
            if self._graphs is not None:
                self._graphs.forget()
            if _is_out_of_memory(error):
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                raise OutOfMemory(f"No memory for a step of {len(rows)} rows.") from error
            # After an error of the device nothing on it can be trusted, and every later call fails as well.
            text = str(error)
            is_of_device = isinstance(error, RuntimeError) and ("CUDA error" in text or "device-side" in text)
            if self._device.type == "cuda" and is_of_device:
                raise FatalEngineError(f"The GPU failed: {error}") from error
            raise
        return results

    def _new_decode_cache(self) -> DecodeCache:
        return DecodeCache(self._shapes, self._cache, max_rows=self.max_rows, dtype=self._dtype)

    def _new_graphs(self) -> DecodeGraphs:
        from workers.model.decode_graphs import DecodeGraphs  # Triton is not everywhere

        graphs = DecodeGraphs(
            self._model, self._cache, max_rows=self.max_rows, context_tokens=self.context_tokens,
        )  # fmt: skip
        graphs.capture()
        return graphs

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile the kernels of prefill, which takes seconds, before anybody waits: short chunks and long ones."""
        for size in (BLOCK_TOKENS, 4096):
            size = min(size, self.context_tokens)
            table = tuple(range(-(-size // BLOCK_TOKENS)))
            row = Row(sequence_id="", tokens=(0,) * size, start=0, block_table=table, sampling=None)
            try:
                self._prefill([], [row])
            except torch.OutOfMemoryError:
                log.warning("No memory to try a chunk of %d tokens; such steps will be made smaller.", size)
                torch.cuda.empty_cache()
        torch.cuda.synchronize()

    def _new_penalties(self) -> Penalties:
        return Penalties(vocab_size=self._vocab_size, max_rows=self.max_rows, device=self._device)

    @torch.inference_mode()
    def _compute(
        self, rows: Sequence[Row], decodes: Sequence[int], chunks: Sequence[int], results: list[RowResult]
    ) -> None:
        decoding: list[Row] = [rows[i] for i in decodes]
        groups: list[GroupPlan] = []
        if self._decode_cache is not None:
            index_of = {rows[i].sequence_id: i for i in decodes}
            groups = self._decode_cache.admit(decoding)
            decoding = self._decode_cache.rows()
            decodes = [index_of[row.sequence_id] for row in decoding]
        plan = StepPlan(self._cache, decoding, [rows[i] for i in chunks], self._device, groups)
        last = [*range(len(decodes)), *(chunk.end - 1 for chunk in plan.chunks)]
        order = [*decodes, *chunks]
        wanted = [place for place, index in enumerate(order) if rows[index].sampling is not None]
        keep = torch.tensor([last[place] for place in wanted], dtype=torch.long, device=self._device)
        with attending(plan):
            # Without a wanted token one position still goes through, for the head must see something.
            output = self._model(
                input_ids=plan.tokens.unsqueeze(0),
                position_ids=plan.positions.unsqueeze(0),
                use_cache=False,
                logits_to_keep=keep if wanted else 1,
            )
        if not wanted:
            return
        logits = output.logits[0].contiguous()  # (wanted, V)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        for place, result in zip(wanted, self._sample(logits, [rows[order[place]] for place in wanted]), strict=True):
            results[order[place]] = result

    @torch.inference_mode()
    def _compute_by_kernels(
        self,
        graphs: DecodeGraphs,
        rows: Sequence[Row],
        decodes: Sequence[int],
        chunks: Sequence[int],
        results: list[RowResult],
    ) -> None:
        """Take the decodes that ran ahead, compute what did not, choose, and begin the next decodes."""
        decoding, chunking = [rows[i] for i in decodes], [rows[i] for i in chunks]
        parts: list[Tensor] = []
        ahead = graphs.take(decoding) if decoding else None
        if ahead is None and decoding and not chunking:
            ahead = graphs.run(decoding)
        if ahead is not None:
            parts.append(ahead)
        if chunking:
            parts.append(self._prefill([] if ahead is not None else decoding, chunking))
        order = [*decodes, *(i for i in chunks if rows[i].sampling is not None)]
        wanted = [place for place, index in enumerate(order) if rows[index].sampling is not None]
        if not wanted:
            graphs.forget()
            return
        logits = (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(order)]
        if len(wanted) < len(order):
            logits = logits[torch.tensor(wanted, device=self._device)]
        # A copy, for what runs ahead next overwrites the graph's own.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True).contiguous()
        chosen = [rows[order[place]] for place in wanted]
        given = self._sample(logits, chosen)
        graphs.begin(chosen, [None if result.token in self.eos_tokens else result.token for result in given])
        for place, result in zip(wanted, given, strict=True):
            results[order[place]] = result

    def _prefill(self, decodes: Sequence[Row], chunks: Sequence[Row]) -> Tensor:
        """Return logits (R + L, V) of the decodes, then of the chunks that want a token; at least one row."""
        from workers.model.kernel_plan import PagedPlan

        assert self._graphs is not None, "kernels without graphs"
        splits = self._graphs.splits(len(decodes)) if decodes else None
        plan = PagedPlan.of_rows(self._cache, decodes, chunks, self._device, splits)
        ends = [
            *range(len(decodes)),
            *(end - 1 for end, row in zip(plan.chunk_ends, chunks, strict=True) if row.sampling),
        ]
        keep: Tensor | int = torch.tensor(ends, dtype=torch.long, device=self._device) if ends else 1
        with attending(plan):
            output = self._model(
                input_ids=plan.tokens.unsqueeze(0), position_ids=plan.positions.unsqueeze(0), use_cache=False,
                logits_to_keep=keep,
            )  # fmt: skip
        return output.logits[0]

    def _sample(self, logits: Tensor, rows: Sequence[Row]) -> list[RowResult]:
        """Return what each row of ``logits`` (wanted, V) gives; changes them."""
        params = [row.sampling for row in rows if row.sampling is not None]
        told = [place for place, item in enumerate(params) if item.logprobs is not None]
        own = logits[told] if told else logits  # a copy: what follows changes the logits
        self._penalties.apply(logits, rows)
        tokens = choose(logits, params, [row.start + len(row.tokens) for row in rows])
        results = [_NUMERICAL if token is None else RowResult(token=token) for token in tokens]
        if told:
            of_told = logprobs(
                own, [tokens[place] or 0 for place in told], [params[place].logprobs or 0 for place in told]
            )
            for place, logprob in zip(told, of_told, strict=True):
                if tokens[place] is not None:
                    results[place] = RowResult(token=tokens[place], logprob=logprob)
        return results

    def _is_sound(self, row: Row) -> bool:
        end = row.start + len(row.tokens)
        num_blocks = -(-end // BLOCK_TOKENS)
        return (
            bool(row.tokens)
            and row.start >= 0
            and end <= self.context_tokens
            and len(row.block_table) >= num_blocks
            and all(0 <= token < self._vocab_size for token in row.tokens)
            and all(0 <= block < self.num_blocks for block in row.block_table[:num_blocks])
            and (row.history is None or len(row.history) >= end)
            and (row.sampling is None or self._can_sample(row.sampling))
        )

    def _can_sample(self, params: SamplingParams) -> bool:
        # Looked at once per sequence and not at every step: a bias may name a thousand tokens.
        known = self._known.get(id(params))
        if known is None:
            if len(self._known) >= 4 * self.max_rows:
                self._known.clear()
            known = self._known[id(params)] = (params, is_usable(params, self._vocab_size))
        return known[1]


def _is_out_of_memory(error: Exception) -> bool:
    # torch's allocators and libraries have no one class for it: the CPU's, cuBLAS' and CUDA's own say it in words.
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _set_threads(model: nn.Module, wanted: int | None) -> None:
    """Let small models compute in one thread, unless told otherwise.

    Threads that wait for each other cost more than they compute there: with 4M parameters, 2 cores and other processes
    busy on both, a step took 21 ms in one thread and 368 ms in two.
    """
    if wanted is None and _num_weights(model) < _SMALL_PARAMETERS:
        wanted = 1
    if wanted is not None:
        torch.set_num_threads(wanted)


def _num_weights(model: nn.Module) -> int:
    """Count parameters, and what layers of our own hold in another form."""
    count = sum(item.numel() for item in model.parameters())
    for layer in model.modules():
        if hasattr(layer, "in_features") and not isinstance(layer, nn.Linear):
            count += int(layer.in_features) * int(layer.out_features)  # type: ignore[arg-type]
    return count


def _context_tokens(config: object, wanted: int | None) -> int:
    """Return the longest sequence that the positions of the model reach."""
    limit = int(getattr(config, "max_position_embeddings", 0) or 0)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(item for item in rope.values() if isinstance(item, dict))]
    for kind in kinds:
        if kind.get("rope_type") == "dynamic":
            raise ModelLoadError(
                "The model stretches its positions with the longest sequence of a batch (rope_type 'dynamic'), "
                "so requests would change each other. Use a model with another rope_type."
            )
        if kind.get("rope_type") == "longrope":
            # Beyond, all positions of a batch would switch to other tables.
            original = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = min(limit, int(original)) if original else limit
    if wanted is None:
        if not limit:
            raise ModelLoadError("The model does not say how long its context is (max_position_embeddings).")
        return limit
    return min(limit, wanted) if limit else wanted
