"""Blocks: none lost, none shared by those who must not, the least used evicted first."""

from __future__ import annotations

import pytest

from chatproject.contract.messages import SamplingParams
from workers.engine.block_manager import BlockManager
from workers.engine.sequence import Sequence
from workers.errors import OutOfBlocks

BLOCK = 16


def _sequence(id_: str, tokens: list[int], user_id: str = "alice") -> Sequence:
    return Sequence(
        sequence_id=id_, tokens=list(tokens), num_prompt=len(tokens), sampling=SamplingParams(), user_id=user_id,
        priority=3, weight=1.0, order=(0, 0),
    )  # fmt: skip


def _compute(blocks: BlockManager, seq: Sequence) -> Sequence:
    blocks.allocate(seq)
    seq.num_computed = len(seq.tokens)
    blocks.commit(seq)
    blocks.check_integrity()
    return seq


def test_a_second_turn_finds_the_blocks_of_the_first() -> None:
    blocks = BlockManager(10, BLOCK)
    first = _compute(blocks, _sequence("first", list(range(50))))
    blocks.release(first)
    second = _sequence("second", [*range(50), 7, 8, 9])
    blocks.allocate(second)
    assert second.num_computed == 48
    blocks.check_integrity()


def test_two_running_sequences_of_a_user_share_full_blocks_only() -> None:
    blocks = BlockManager(10, BLOCK)
    first = _compute(blocks, _sequence("first", list(range(40))))
    second = _compute(blocks, _sequence("second", list(range(40))))
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert blocks.num_free == 10 - 4


def test_nothing_of_another_user_is_found() -> None:
    blocks = BlockManager(10, BLOCK)
    _compute(blocks, _sequence("first", list(range(40))))
    bobs = _sequence("second", list(range(40)), user_id="bob")
    assert blocks.num_cached(bobs) == 0
    assert not set(_compute(blocks, bobs).blocks) & set(blocks._holders["first"].blocks)


def test_a_block_is_found_only_behind_the_same_tokens() -> None:
    blocks = BlockManager(10, BLOCK)
    _compute(blocks, _sequence("first", [1] * BLOCK + [2] * BLOCK + [3]))
    assert blocks.num_cached(_sequence("second", [9] * BLOCK + [2] * BLOCK + [3])) == 0


def test_the_last_token_is_always_computed() -> None:
    blocks = BlockManager(10, BLOCK)
    first = _compute(blocks, _sequence("first", list(range(32))))
    blocks.release(first)
    again = _sequence("again", list(range(32)))
    blocks.allocate(again)
    assert again.num_computed == 16


def test_the_least_recently_used_is_evicted_first_and_from_its_end() -> None:
    blocks = BlockManager(6, BLOCK)
    old, new = _sequence("old", [1] * 33), _sequence("new", [2] * 33)
    for seq in (old, new):
        _compute(blocks, seq)
        blocks.release(seq)
    # Two blocks are empty; the third that this one takes is the deepest of ``old``.
    taker = _compute(blocks, _sequence("taker", list(range(100, 140))))
    assert blocks.num_cached(_sequence("old", [1] * 33)) == 16
    assert blocks.num_cached(_sequence("new", [2] * 33)) == 32
    blocks.release(taker)
    blocks.check_integrity()


def test_too_few_blocks_change_nothing() -> None:
    blocks = BlockManager(3, BLOCK)
    held = _compute(blocks, _sequence("held", [1] * 20))
    with pytest.raises(OutOfBlocks):
        blocks.allocate(_sequence("big", [2] * 40))
    held.tokens += [1] * 40
    with pytest.raises(OutOfBlocks):
        blocks.extend(held)
    assert blocks.num_free == 1
    blocks.check_integrity()


def test_blocks_of_a_failed_sequence_are_not_found_again() -> None:
    blocks = BlockManager(10, BLOCK)
    failed = _compute(blocks, _sequence("failed", list(range(40))))
    blocks.forget(failed)
    blocks.release(failed)
    assert blocks.num_cached(_sequence("again", list(range(40)))) == 0
    assert blocks.num_free == 10
    blocks.check_integrity()


def test_integrity_check_sees_a_leak_a_wrong_count_and_wrong_sharing() -> None:
    def spoiled() -> BlockManager:
        blocks = BlockManager(6, BLOCK)
        _compute(blocks, _sequence("a", [1] * 40))
        _compute(blocks, _sequence("b", [2] * 40, user_id="bob"))
        return blocks

    leak = spoiled()
    leak._holders.pop("a")
    count = spoiled()
    count._references[count._holders["a"].blocks[0]] += 1
    sharing = spoiled()
    a, b = sharing._holders["a"], sharing._holders["b"]
    sharing._references[b.blocks[0]] -= 1
    sharing._references[a.blocks[0]] += 1
    b.blocks[0] = a.blocks[0]
    b.table = tuple(b.blocks)
    for blocks in (leak, count, sharing):
        with pytest.raises(AssertionError):
            blocks.check_integrity()
