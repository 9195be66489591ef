"""A queue that weighs nothing while it is empty still keeps the order and loses nobody."""

from __future__ import annotations

import asyncio
import sys

from chatproject.small_queue import SmallQueue


async def test_items_come_in_order_to_one_who_waits_and_one_who_comes_later() -> None:
    queue: SmallQueue[int] = SmallQueue()
    got: list[int] = []

    async def take() -> None:
        while len(got) < 5:
            got.append(await queue.get())

    taking = asyncio.create_task(take())
    await asyncio.sleep(0)
    queue.put(1)
    queue.put(2)
    await asyncio.sleep(0)
    queue.put(3)
    await asyncio.sleep(0.01)
    assert got == [1, 2, 3]
    for item in (4, 5):
        queue.put(item)
    await asyncio.wait_for(taking, 5)
    assert got == [1, 2, 3, 4, 5]


async def test_nothing_is_lost_when_who_waited_is_cancelled() -> None:
    queue: SmallQueue[str] = SmallQueue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    queue.put("kept")
    assert await asyncio.wait_for(queue.get(), 5) == "kept"
    late = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.put("also kept")
    assert await asyncio.wait_for(late, 5) == "also kept"


async def test_an_empty_one_is_small() -> None:
    queue: SmallQueue[str] = SmallQueue()
    queue.put("x")
    await queue.get()
    assert sum(map(sys.getsizeof, (queue, queue._items, queue._bell))) < 200
    assert not hasattr(queue, "__dict__")
