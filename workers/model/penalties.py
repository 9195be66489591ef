"""Change the logits of the rows that ask for it: logit bias, then repetition, presence and frequency penalties.

What was counted of a sequence is kept on the device and grows by a token a step; it is counted anew from the row's
history whenever that does not follow. So the outcome is that of the history alone: in any batch, and after a resume.
Knows rows. Knows nothing of temperatures or cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from chatproject.contract.messages import SamplingParams
from workers.engine.interfaces import Row

_LEAST_SLOTS = 4
_LEAST_TOKENS = 64  # distinct tokens that a slot has room for at first


# B rows, V vocabulary, P rows with penalties, S slots, C distinct tokens of a sequence
class _Slot:
    """What is known of one sequence."""

    def __init__(self, history: Sequence[int], place: int) -> None:
        self.history = history  # held, so that its id() stays its own
        self.place = place
        self.num_counted = -1  # leading tokens of ``history``
        self.columns: dict[int, int] = {}  # token to its column


class Penalties:
    """The counts of the sequences that have penalties. Owned by the engine thread."""

    def __init__(self, *, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self._most_slots = 2 * max_rows  # so that a sequence that pauses for a while is still known
        self._slots: dict[int, _Slot] = {}  # by id() of the history, the longest unused first
        self._free: list[int] = []
        self._tokens = torch.zeros((0, _LEAST_TOKENS), dtype=torch.long, device=device)  # (S, C)
        self._counts = torch.zeros((0, _LEAST_TOKENS), dtype=torch.float64, device=device)  # (S, C), in the answer
        self._wishes = torch.zeros((0, 3), dtype=torch.float64, device=device)  # (S, repetition presence frequency)
        self._biases = _Biases(device)

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """Change ``logits`` (B, V), contiguous, in place. ``rows`` all want a token."""
        biased = [place for place, row in enumerate(rows) if row.sampling is not None and row.sampling.logit_bias]
        if biased:
            self._biases.add(logits, rows, biased)
        counted = [place for place, row in enumerate(rows) if row.history is not None]
        if counted:
            self._penalise(logits, rows, counted)

    def _penalise(self, logits: Tensor, rows: Sequence[Row], counted: Sequence[int]) -> None:
        slots = self._count([rows[place] for place in counted])
        some = [(place, slot.place, len(slot.columns)) for place, slot in zip(counted, slots, strict=True)]
        some = [item for item in some if item[2]]  # at first an answer has no tokens
        if not some:
            return
        table = torch.tensor(some, device=self._device)
        places, indices, sizes = table[:, :1], table[:, 1], table[:, 2:]
        width = max(item[2] for item in some)
        seen = torch.arange(width, device=self._device) < sizes  # (P, C)
        tokens, counts = self._tokens[indices, :width], self._counts[indices, :width]
        # What pads a row repeats its first token, and writes the same there.
        tokens = torch.where(seen, tokens, tokens[:, :1])
        repetition, presence, frequency = self._wishes[indices].unsqueeze(1).unbind(-1)  # (P, 1) each
        flat, where = logits.view(-1), places * logits.shape[1] + tokens
        old = flat[where].double()
        new = torch.where(old < 0, old * repetition, old / repetition) - (counts > 0) * presence - counts * frequency
        flat[where] = torch.where(seen, new, new[:, :1]).to(logits.dtype)

    def _count(self, rows: Sequence[Row]) -> list[_Slot]:
        """Return the slots of ``rows``, each counted to the end of its row."""
        slots: list[_Slot] = []
        added: list[tuple[int, int, int, bool]] = []  # slot, column, token, whether it is of the answer
        for row in rows:
            assert row.history is not None
            slot = self._slot(row.history)
            end = row.start + len(row.tokens)
            if slot.num_counted == end - 1:
                token = row.tokens[-1]
                column = slot.columns.setdefault(token, len(slot.columns))
                added.append((slot.place, column, token, end > row.num_prompt))
                slot.num_counted = end
            elif slot.num_counted != end:
                self._count_anew(slot, row, end)
            slots.append(slot)
        if added:
            self._make_room(max(column for _, column, _, _ in added) + 1)
            table = torch.tensor(added, device=self._device)  # the slots are distinct
            self._tokens[table[:, 0], table[:, 1]] = table[:, 2]
            self._counts[table[:, 0], table[:, 1]] += table[:, 3]
        return slots

    def _count_anew(self, slot: _Slot, row: Row, end: int) -> None:
        assert row.history is not None
        assert row.sampling is not None
        wish = row.sampling
        prompt, answer = row.history[: row.num_prompt], Counter(row.history[row.num_prompt : end])
        # Without a repetition penalty the prompt changes nothing.
        counts = dict.fromkeys(prompt if wish.repetition_penalty != 1 else (), 0) | answer
        counts = {token: count for token, count in counts.items() if 0 <= token < self._vocab_size}
        slot.columns = {token: column for column, token in enumerate(counts)}
        slot.num_counted = end
        self._make_room(len(counts) + 1)
        self._tokens[slot.place, : len(counts)] = torch.tensor(list(counts), dtype=torch.long, device=self._device)
        self._counts[slot.place] = 0
        self._counts[slot.place, : len(counts)] = torch.tensor(list(counts.values()), device=self._device).double()
        self._wishes[slot.place] = torch.tensor(
            [wish.repetition_penalty, wish.presence_penalty, wish.frequency_penalty], dtype=torch.float64
        )

    def _slot(self, history: Sequence[int]) -> _Slot:
        slot = self._slots.pop(id(history), None)
        if slot is None:
            slot = _Slot(history, self._take_place())
        self._slots[id(history)] = slot
        return slot

    def _take_place(self) -> int:
        num_slots = self._tokens.shape[0]
        if not self._free and num_slots >= self._most_slots:
            return self._slots.pop(next(iter(self._slots))).place
        if not self._free:
            more = min(max(num_slots, _LEAST_SLOTS), self._most_slots - num_slots)
            for name in ("_tokens", "_counts", "_wishes"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, old.new_zeros(more, old.shape[1])]))
            self._free = list(range(num_slots, num_slots + more))
        return self._free.pop()

    def _make_room(self, num_tokens: int) -> None:
        width = self._tokens.shape[1]
        if num_tokens > width:
            more = max(width, num_tokens - width)
            self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(self._tokens.shape[0], more)], dim=1)
            self._counts = torch.cat([self._counts, self._counts.new_zeros(self._counts.shape[0], more)], dim=1)


class _Biases:
    """The logit biases of a batch, put together once for as long as it stays the same."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[int, tuple[SamplingParams, Tensor, Tensor]] = {}  # by id(): tokens, biases
        self._batch: tuple[tuple[int, int], ...] = ()  # place and id() of the parameters
        self._indices: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._values = torch.empty(0)

    def add(self, logits: Tensor, rows: Sequence[Row], biased: Sequence[int]) -> None:
        batch = tuple((place, id(rows[place].sampling)) for place in biased)
        if batch != self._batch:
            self._put_together(batch, rows)
        logits.index_put_(self._indices, self._values.to(logits.dtype), accumulate=True)

    def _put_together(self, batch: tuple[tuple[int, int], ...], rows: Sequence[Row]) -> None:
        known = {}
        for place, key in batch:
            params = rows[place].sampling
            assert params is not None
            known[key] = self._known.get(key) or (
                params,
                torch.tensor([token for token, _ in params.logit_bias], dtype=torch.long, device=self._device),
                torch.tensor([bias for _, bias in params.logit_bias], dtype=torch.float64, device=self._device),
            )
        # Parameters of this batch are held by it, so their id() cannot come to mean others.
        self._known, self._batch = known, batch
        tokens = [known[key][1] for _, key in batch]
        places = [torch.full_like(some, place) for (place, _), some in zip(batch, tokens, strict=True)]
        self._indices = (torch.cat(places), torch.cat(tokens))
        self._values = torch.cat([known[key][2] for _, key in batch])
