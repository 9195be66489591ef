"""A bell wakes the one who waits, and nobody else later."""

from __future__ import annotations

import asyncio

import pytest

from chatproject.bell import Bell


async def test_it_wakes_who_waits_and_only_then() -> None:
    bell = Bell()
    bell.ring()  # nobody waits: not kept
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    bell.ring()
    bell.ring()
    await asyncio.wait_for(waiting, 5)


async def test_one_who_was_cancelled_is_not_waited_for() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bell.ring()
    assert not hasattr(bell, "__dict__")  # ten thousand of them are small
