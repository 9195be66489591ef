"""Hand out KV blocks: paged, counted by reference, full ones shared between sequences of one user.

Knows block ids and token ids. Knows no tensors, no scheduling and no clock.
A full block's digest covers its user, all tokens before it and its own, so equal digests mean equal keys and values.
Only full blocks are shared, and a sequence writes only past what is computed: a shared block is never written.
Source: Kwon et al. 2023 (arXiv:2309.06180), 4.2-4.3.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

from workers.engine.sequence import Sequence
from workers.errors import OutOfBlocks


class BlockManager:
    """Owns which block is whose. Engine thread only."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))  # hold nothing worth keeping
        self._references = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}  # the prefix cache
        self._digest_of: dict[int, bytes] = {}  # its reverse
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and unreferenced, least recently used first
        self._holders: dict[str, Sequence] = {}

    @property
    def num_free(self) -> int:
        """Return how many blocks can be had: empty ones, and cached ones that nobody holds."""
        return len(self._free) + len(self._idle)

    def num_needed(self, num_tokens: int) -> int:
        """Return how many blocks ``num_tokens`` tokens take."""
        return -(-num_tokens // self.block_tokens)

    def num_cached(self, seq: Sequence) -> int:
        """Return how many leading tokens of ``seq`` the cache holds now."""
        return len(self._match(seq)) * self.block_tokens

    def can_allocate(self, seq: Sequence, spare: int = 0) -> bool:
        """Say whether ``seq`` can have blocks for all its tokens with ``spare`` more left over."""
        shared = self._match(seq)
        revived = sum(1 for block in shared if not self._references[block])
        return self.num_free - revived - (self.num_needed(len(seq.tokens)) - len(shared)) >= spare

    def allocate(self, seq: Sequence) -> None:
        """Give ``seq`` blocks for all its tokens, cached ones first, and count the cached tokens as computed.

        Raises OutOfBlocks when there are too few; nothing has changed then.
        """
        if not self.can_allocate(seq):
            raise OutOfBlocks(f"{self.num_needed(len(seq.tokens))} blocks needed, {self.num_free} free")
        shared = self._match(seq)
        for block in shared:
            self._idle.pop(block, None)
            self._references[block] += 1
        seq.blocks = shared
        seq.num_computed = len(shared) * self.block_tokens
        seq.num_committed = len(shared)
        self._holders[seq.sequence_id] = seq
        self._take(seq, self.num_needed(len(seq.tokens)) - len(shared))

    def can_extend(self, seq: Sequence) -> bool:
        """Say whether ``extend`` would succeed."""
        return self.num_needed(len(seq.tokens)) - len(seq.blocks) <= self.num_free

    def extend(self, seq: Sequence) -> None:
        """Give ``seq`` the blocks its newest tokens need. Raises OutOfBlocks, changing nothing."""
        missing = self.num_needed(len(seq.tokens)) - len(seq.blocks)
        if missing > self.num_free:
            raise OutOfBlocks(f"{missing} blocks needed, {self.num_free} free")
        if missing > 0:
            self._take(seq, missing)

    def extend_ahead(self, seq: Sequence, spare: int) -> None:
        """Give ``seq`` the block that its next token will need, if more than ``spare`` are free then."""
        if len(seq.tokens) + 1 > len(seq.blocks) * self.block_tokens and self.num_free > spare + 1:
            self._take(seq, 1)

    def commit(self, seq: Sequence) -> None:
        """Offer to the cache the blocks of ``seq`` that its computed tokens have filled."""
        full = seq.num_computed // self.block_tokens
        self._hash(seq, full)
        for index in range(seq.num_committed, full):
            digest, block = seq.digests[index], seq.blocks[index]
            # Two sequences may have computed the same block side by side: the first stays, the other is private.
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._digest_of[block] = digest
        seq.num_committed = full

    def release(self, seq: Sequence) -> None:
        """Take back every block of ``seq``; its cached ones stay findable until they are needed."""
        # Deepest first: a prefix is worth more than what follows it, so it must be evicted later.
        for block in reversed(seq.blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._free.append(block)
        self._holders.pop(seq.sequence_id, None)
        seq.blocks, seq.table = [], ()
        seq.num_computed = seq.num_committed = 0

    def forget(self, seq: Sequence) -> None:
        """Take the blocks of ``seq`` out of the cache: what a failed sequence computed or read may be poisoned."""
        for block in seq.blocks:
            digest = self._digest_of.pop(block, None)
            if digest is not None:
                del self._block_of[digest]

    def check_integrity(self) -> None:
        """Raise AssertionError when a block is lost, counted wrongly, or shared by those who must not."""
        held: dict[int, list[tuple[Sequence, int]]] = {}
        for seq in self._holders.values():
            assert seq.table == tuple(seq.blocks), f"{seq.sequence_id}: stale table"
            assert len(seq.blocks) >= self.num_needed(seq.num_computed), (
                f"{seq.sequence_id}: computed beyond its blocks"
            )
            for index, block in enumerate(seq.blocks):
                held.setdefault(block, []).append((seq, index))
        for block, count in enumerate(self._references):
            assert count == len(held.get(block, ())), f"block {block}: counted {count}, held {len(held.get(block, ()))}"
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & idle, "a block is free and cached"
        assert not (free | idle) & held.keys(), "a held block could be handed out"
        assert free | idle | held.keys() == set(range(self.num_blocks)), "a block is lost"
        assert {block: digest for digest, block in self._block_of.items()} == self._digest_of, (
            "cache and reverse differ"
        )
        assert idle <= self._digest_of.keys(), "an idle block cannot be found"
        for block, holders in held.items():
            if len(holders) == 1:
                continue
            first, index = holders[0]
            until = (index + 1) * self.block_tokens
            for seq, place in holders:
                assert place == index, f"block {block}: shared at different places"
                assert seq.user_id == first.user_id, f"block {block}: shared between users"
                assert seq.num_computed >= until, f"block {block}: shared and still written"
                assert seq.tokens[:until] == first.tokens[:until], f"block {block}: shared by different tokens"

    def _match(self, seq: Sequence) -> list[int]:
        # At least the last token is computed: its logits are wanted.
        limit = (len(seq.tokens) - 1) // self.block_tokens
        self._hash(seq, limit)
        found: list[int] = []
        for digest in seq.digests[:limit]:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def _hash(self, seq: Sequence, num_blocks: int) -> None:
        size = self.block_tokens
        for index in range(len(seq.digests), num_blocks):
            before = seq.digests[-1] if seq.digests else _root(seq.user_id)
            tokens = array("q", seq.tokens[index * size : (index + 1) * size]).tobytes()
            seq.digests.append(hashlib.blake2b(before + tokens, digest_size=16).digest())

    def _take(self, seq: Sequence, count: int) -> None:
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                del self._block_of[self._digest_of.pop(block)]
            self._references[block] = 1
            seq.blocks.append(block)
        seq.table = tuple(seq.blocks)


def _root(user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16, person=b"user").digest()
