"""What a training step shows: single turns, conversations, or answers recited behind their plans, as token ids.

Knows the sampler of conversations and the tokenizer; nothing of the network.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from workers.demo_model import bag, corpus
from workers.demo_model import tokenizer as demo_tokenizer
from workers.demo_model.conversations import ConversationSampler

SINGLES, RECITALS = 96, 24  # rows of a step
WHOLE = 0.3  # share of answers to single turns that are whole
LAST_TURN = 60  # tokens of a row that are kept for its last turn; of one that is longer, only the beginning is told


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run: ``until`` this share of it, ``rows`` conversations of ``length`` tokens a step."""

    until: float
    rows: int
    length: int
    short: float  # share of earlier answers that break off: more questions per token
    singles: float = 0.0  # share of steps that show single turns instead
    recitals: float = 0.0  # share of steps that show answers behind their plans, without a question


Row = tuple[list[int], list[bool], list[int]]  # token ids, whether each is to be told, which plan is right behind it


class Batches:
    """Rows of conversations, single turns or recitals, with what is to be learned from them.

    Only the last answer of a row is told, behind its plan. Of those before it the plan alone is learned, and it does
    not stand there: a served conversation has no plans in its history either.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._sampler = ConversationSampler(self._rng)
        self._special = {
            name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("system", "user", "assistant")
        }
        ids = cast(list[int], tokenizer.convert_tokens_to_ids(demo_tokenizer.PLANS))
        if None in ids or len(ids) != len(corpus.answers()):
            raise ValueError("This tokenizer has other plans than the data has answers: train from nothing.")
        self._plans = dict(zip(corpus.answers(), ids, strict=True))
        self._told = {answer: [*self._encode(answer), tokenizer.eos_token_id] for answer in corpus.answers()}
        self._waiting: list[list[Row]] = []  # batches of single turns

    def prompts(self, count: int) -> list[bag.Prompt]:
        """``count`` first questions of conversations in their template, and the number of the right answer."""
        numbers = {answer: number for number, answer in enumerate(corpus.answers())}
        found = []
        for _ in range(count):
            self._sampler.start()
            question, answer = self._sampler.turn()
            found.append((self._asked(question), numbers[answer]))
        return found

    def draw(self, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Three of (rows, at most length + 1): token ids, whether each is to be told, the plan that is right behind it.

        Where no answer begins, that plan is -1.
        """
        kind = self._rng.random()
        if kind < phase.singles:
            rows = self._singles()
        elif kind < phase.singles + phase.recitals:
            rows = [self._recital(answer) for answer in self._rng.sample(corpus.answers(), RECITALS)]
        else:
            rows = [self._conversation(phase) for _ in range(phase.rows)]
        ids, is_told, plans = zip(*rows, strict=True)
        return _padded(ids, self._tokenizer.pad_token_id), _padded(is_told, False), _padded(plans, -1)

    def _singles(self) -> list[Row]:
        """A batch of single turns that are about as long as each other: little is spent on padding."""
        if not self._waiting:
            turns = []
            for _ in range(16 * SINGLES):
                self._sampler.start()
                turns.append(self._turn(*self._sampler.turn(), is_whole=self._rng.random() < WHOLE))
            turns.sort(key=lambda row: len(row[0]))
            self._waiting = [turns[at : at + SINGLES] for at in range(0, len(turns), SINGLES)]
            self._rng.shuffle(self._waiting)
        return self._waiting.pop()

    def _recital(self, answer: str) -> Row:
        tokens = [self._special["assistant"], self._plans[answer], *self._told[answer]]
        return tokens, [False, False, *[True] * (len(tokens) - 2)], [-1] * len(tokens)

    def _conversation(self, phase: Phase) -> Row:
        end, system = self._tokenizer.eos_token_id, self._sampler.start()
        tokens = [self._special["system"], *self._encode(system), end] if system else []
        plans = [-1] * len(tokens)
        while True:
            question, answer = self._sampler.turn()
            asked, told = self._asked(question), self._told[answer]
            if len(tokens) + len(asked) + len(told) + LAST_TURN > phase.length:
                last = self._turn(question, answer, is_whole=True)
                is_told = [False] * len(tokens) + last[1]
                room = phase.length + 1
                return (tokens + last[0])[:room], is_told[:room], (plans + last[2])[:room]
            if len(told) > 12 and self._rng.random() < phase.short:
                told = [*told[: self._rng.randint(4, 9)], end]
            tokens += asked + told
            plans += [*[-1] * (len(asked) - 1), self._plans[answer], *[-1] * len(told)]

    def _turn(self, question: str, answer: str, *, is_whole: bool) -> Row:
        asked, told = self._asked(question), self._told[answer]
        told = told if is_whole else told[: self._rng.randint(4, 9)]
        tokens = [*asked, self._plans[answer], *told]
        is_told = [*[False] * (len(asked) + 1), *[True] * len(told)]
        return tokens, is_told, [*[-1] * (len(asked) - 1), self._plans[answer], *[-1] * (len(told) + 1)]

    def _asked(self, question: str) -> list[int]:
        special = self._special
        return [special["user"], *self._encode(question), self._tokenizer.eos_token_id, special["assistant"]]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
