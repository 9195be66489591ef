"""The kernels over the paged cache give what plain softmax over the positions gives, and never what lies elsewhere.

Interpreted where there is no GPU. Blocks that a row does not own hold numbers that are none.
"""

from __future__ import annotations

import pytest
import torch

from chatproject.contract.messages import SamplingParams
from tests.unit.model import tiny
from workers.engine.interfaces import BLOCK_TOKENS, Row
from workers.model.attention import StepPlan, attending, probe_layers
from workers.model.kv_cache import KVCache
from workers.model.loader import load_model

pytestmark = pytest.mark.needs("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = (1, 15, 16, 0, 17, 100)  # 0: a row of padding
CHUNKS = ((0, 5), (37, 70), (37, 1), (0, 17))  # positions before the chunk, and its tokens
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
GREEDY = SamplingParams(temperature=0, max_tokens=20)


# L positions of a row, H query heads, K kv heads, D key dim, V value dim
class Paged:
    """Random rows in shuffled blocks of a cache that holds NaN wherever no row has written."""

    def __init__(self, lengths, num_kv_heads, key_dim, value_dim=None):
        torch.manual_seed(0)
        value_dim = value_dim or key_dim
        counts = [-(-length // BLOCK_TOKENS) for length in lengths]
        order = (torch.randperm(sum(counts) + 1) + 1).tolist()  # block 0, which pads the tables, is nobody's
        self.keys = torch.full((BLOCK_TOKENS * (len(order) + 1), num_kv_heads, key_dim), float("nan"), device=DEVICE)
        self.values = torch.full((self.keys.shape[0], num_kv_heads, value_dim), float("nan"), device=DEVICE)
        self.tables = torch.zeros(len(lengths), max(counts) + 2, dtype=torch.int32, device=DEVICE)
        self.rows = []
        for place, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            blocks = torch.tensor([order.pop() for _ in range(count)], dtype=torch.long)
            self.tables[place, :count] = blocks.to(DEVICE, torch.int32)
            slots = (blocks.unsqueeze(1) * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).view(-1)[:length].to(DEVICE)
            keys = torch.randn(length, num_kv_heads, key_dim, device=DEVICE)
            values = torch.randn(length, num_kv_heads, value_dim, device=DEVICE)
            self.keys[slots], self.values[slots] = keys, values
            self.rows.append((keys, values))


def attend(query, keys, values, start, window, softcap, scaling):
    """(C, H, V) of a query (C, H, D) at positions from ``start``, with nothing clever."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (item.double().repeat_interleave(group, 1) for item in (keys, values))
    scores = torch.einsum("chd,lhd->hcl", query.double(), keys) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    own = torch.arange(start, start + query.shape[0], device=DEVICE).unsqueeze(1)
    others = torch.arange(keys.shape[0], device=DEVICE).unsqueeze(0)
    seen = (others <= own) & (others > own - (window or len(keys) + 1))
    return torch.einsum("hcl,lhv->chv", scores.masked_fill(~seen, float("-inf")).softmax(-1), values).float()


def decode(paged, query, lengths, **options):
    from workers.model.kernels.paged_decode import paged_decode

    device_lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    return paged_decode(query, paged.keys, paged.values, paged.tables[: len(lengths)], device_lengths, **options)


@pytest.mark.parametrize("splits", [(1, 1), (4, 1)])
@pytest.mark.parametrize(
    ("group", "num_kv_heads", "key_dim", "window", "softcap"),
    [(1, 2, 64, None, None), (4, 1, 80, 20, None), (7, 1, 128, None, 5.0), (7, 1, 16, 70, 2.0)],
)
def test_decoding_rows_see_their_own_positions(group, num_kv_heads, key_dim, window, softcap, splits):
    paged = Paged(LENGTHS, num_kv_heads, key_dim)
    # Heads before rows in memory, as rotary positions may leave it.
    query = torch.randn(group * num_kv_heads, len(LENGTHS), key_dim, device=DEVICE).transpose(0, 1)
    out = decode(paged, query, LENGTHS, window=window, softcap=softcap, splits=splits)
    for place, (length, (keys, values)) in enumerate(zip(LENGTHS, paged.rows, strict=True)):
        if not length:
            assert not out[place].any()
            continue
        one = query[place : place + 1]
        expected = attend(one, keys, values, length - 1, window, softcap, key_dim**-0.5)
        torch.testing.assert_close(out[place : place + 1], expected, **TOLERANCE)


def test_keys_and_values_of_other_widths_decode():
    paged = Paged((33,), 2, 48, 32)
    query = torch.randn(1, 6, 48, device=DEVICE)
    expected = attend(query, *paged.rows[0], 32, None, None, 0.3)
    torch.testing.assert_close(decode(paged, query, (33,), scaling=0.3, splits=(2, 1)), expected, **TOLERANCE)


# Triton 3.6, interpreted, multiplies the bits of bfloat16 as if they were integers.
@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.needs("cuda"))], ids=str
)
def test_half_precision_decodes(dtype):
    paged = Paged((70, 3), 1, 64)
    paged.keys, paged.values = paged.keys.to(dtype), paged.values.to(dtype)
    query = torch.randn(2, 4, 64, device=DEVICE).to(dtype)
    out = decode(paged, query, (70, 3), splits=(2, 1))
    for place, (keys, values) in enumerate(paged.rows):
        one = query[place : place + 1].float()
        expected = attend(one, keys.to(dtype), values.to(dtype), len(keys) - 1, None, None, 0.125)
        torch.testing.assert_close(out[place : place + 1].float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("splits", [(1, 1), (2, 1)])
def test_row_decodes_the_same_whatever_lies_beside_it(splits):
    lengths = (17, 0, 100)
    paged = Paged(lengths, 1, 32)
    query = torch.randn(len(lengths), 4, 32, device=DEVICE)
    together = decode(paged, query, lengths, splits=splits)
    for place, length in enumerate(lengths):
        alone = [0] * len(lengths)
        alone[place] = length
        assert torch.equal(decode(paged, query, alone, splits=splits)[place], together[place])


@pytest.mark.parametrize("splits", [(1, 1), (4, 1)])
def test_numbers_that_are_none_show_in_their_own_row_alone(splits):
    paged = Paged((100, 100), 1, 16)
    query = torch.randn(2, 2, 16, device=DEVICE)
    paged.keys[int(paged.tables[1, 4]) * BLOCK_TOKENS] = float("nan")
    out = decode(paged, query, (100, 100), splits=splits)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_splits_follow_from_the_launch_and_fill_a_device():
    from workers.model.kernels.paged_decode import choose_splits

    for rows in (1, 2, 8, 32, 64, 256):
        for capacity in (16, 1024, 32768):
            splits, least_tiles = choose_splits(rows, 4, capacity)
            assert splits & (splits - 1) == 0
            assert 1 <= splits <= 64
            assert 1 <= least_tiles <= 16
    assert choose_splits(8, 4, 1024)[0] * 8 * 4 >= 132  # multiprocessors of a Hopper
    assert choose_splits(256, 4, 1024)[0] == 1


@pytest.mark.parametrize(
    ("group", "num_kv_heads", "key_dim", "window", "softcap"),
    [(1, 1, 64, None, None), (4, 1, 80, 20, None), (7, 1, 128, None, 5.0), (2, 2, 16, 40, 2.0)],
)
def test_chunks_see_what_came_before_each_token(group, num_kv_heads, key_dim, window, softcap):
    from workers.model.kernels.paged_prefill import paged_prefill

    paged = Paged([start + size for start, size in CHUNKS], num_kv_heads, key_dim)
    sizes = [size for _, size in CHUNKS]
    query = torch.randn(group * num_kv_heads, sum(sizes), key_dim, device=DEVICE).transpose(0, 1)
    ends = torch.tensor([0, *torch.tensor(sizes).cumsum(0)], dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([start for start, _ in CHUNKS], dtype=torch.int32, device=DEVICE)
    out = paged_prefill(
        query, paged.keys, paged.values, paged.tables, ends, starts, longest=max(sizes), window=window, softcap=softcap
    )
    for (start, _), (keys, values), own, found in zip(
        CHUNKS, paged.rows, query.split(sizes), out.split(sizes), strict=True
    ):
        expected = attend(own, keys, values, start, window, softcap, key_dim**-0.5)
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (80, 24)])
def test_write_goes_to_the_slots_and_nowhere_else(key_dim, value_dim):
    from workers.model.kernels.cache_write import cache_write

    torch.manual_seed(0)
    slots = torch.tensor([7, -1, 0, 30, -1], device=DEVICE)
    keys = torch.randn(3, len(slots), key_dim, device=DEVICE).transpose(0, 1)
    values = torch.randn(len(slots), 3, value_dim, device=DEVICE)
    cached_keys = torch.randn(32, 3, key_dim, device=DEVICE)
    cached_values = torch.randn(32, 3, value_dim, device=DEVICE)
    expected_keys, expected_values = cached_keys.clone(), cached_values.clone()
    taken = slots >= 0
    expected_keys[slots[taken]], expected_values[slots[taken]] = keys[taken], values[taken]
    cache_write(keys, values, slots, cached_keys, cached_values)
    assert torch.equal(cached_keys, expected_keys)
    assert torch.equal(cached_values, expected_values)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tiny.save_tiny(tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    return load_model(directory, device=DEVICE.type, dtype=torch.float32).model


def _row(name, tokens, blocks, start=0):
    return Row(sequence_id=name, tokens=tuple(tokens), start=start, block_table=tuple(blocks), sampling=GREEDY)


def _forward(model, plan):
    with attending(plan), torch.inference_mode():
        return model(
            input_ids=plan.tokens.unsqueeze(0), position_ids=plan.positions.unsqueeze(0), use_cache=False
        ).logits[0]


def _two_caches(model):
    shapes = probe_layers(model, DEVICE)
    return [KVCache(shapes, num_blocks=20, dtype=torch.float32, device=DEVICE) for _ in range(2)]


def test_mixed_step_by_kernels_equals_the_plain_step(model):
    from workers.model.kernel_plan import PagedPlan

    plain, paged = _two_caches(model)
    alice, bob, charlie = (3, 9, 1), (5, 4), (7, 12, 11, 2)
    steps = [
        ([], [_row("alice", range(2, 36), alice), _row("bob", range(40, 57), bob)]),
        (
            [_row("alice", [50], alice, 34), _row("bob", [51], bob, 17)],
            [_row("charlie", range(60, 97), charlie)],
        ),
        ([_row("bob", [52], bob, 18)], [_row("charlie", range(97, 120), charlie, 37), _row("dora", [8, 9], [0])]),
    ]
    for decodes, chunks in steps:
        expected = _forward(model, StepPlan(plain, decodes, chunks, DEVICE))
        found = _forward(model, PagedPlan.of_rows(paged, decodes, chunks, DEVICE))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_buffers_that_stay_serve_rows_that_come_go_and_grow(model):
    from workers.model.kernel_plan import DecodeBuffers, PagedPlan

    plain, paged = _two_caches(model)
    tables = {"alice": (3, 9, 1), "bob": (5,), "charlie": (7, 12)}
    chunks = [
        _row("alice", range(2, 36), tables["alice"]),
        _row("bob", range(40, 55), tables["bob"]),
        _row("charlie", range(60, 90), tables["charlie"]),
    ]
    _forward(model, StepPlan(plain, [], chunks, DEVICE))
    _forward(model, PagedPlan.of_rows(paged, [], chunks, DEVICE))
    buffers = DecodeBuffers(4, 4, DEVICE, paged)
    plan = buffers.plan
    at = {"alice": 34, "bob": 15, "charlie": 30}
    grown = {"bob": (5, 14), "charlie": (7, 12, 0)}
    for step, names in enumerate([["alice", "bob", "charlie"], ["charlie", "bob"], ["alice"]]):
        tables |= grown if step == 1 else {}
        rows = [_row(name, [100 + step], tables[name], at[name]) for name in names]
        expected = _forward(model, StepPlan(plain, rows, [], DEVICE))
        buffers.fill([100 + step] * len(rows), [row.start for row in rows], [row.block_table for row in rows])
        assert buffers.plan is plan
        found = _forward(model, plan)
        torch.testing.assert_close(found[: len(rows)], expected, rtol=1e-3, atol=1e-4)
        assert found.isfinite().all()
        for name in names:
            at[name] += 1
