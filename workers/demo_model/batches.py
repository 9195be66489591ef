"""What a training step shows, as token ids: single turns, conversations, or answers recited behind their plans.

A conversation of two or three turns costs a hundred tokens before it comes to what follows up on them. So it is shown
once with several next questions, a tree: each sees the conversation and itself, and none of the others.
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

SINGLES, RECITALS, TREES = 96, 24, 10  # rows of a step
BRANCHES, TRUNK = 8, 256  # next questions of a tree, and tokens that a second or third turn before them may fill
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
    trees: float = 0.0  # share of steps that show short conversations with several next questions each


Row = tuple[list[int], list[bool], list[int]]  # token ids, whether each is to be told, which plan is right behind it


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step shows; all are (rows, tokens of the longest row)."""

    ids: Tensor
    is_told: Tensor  # bool
    plans: Tensor  # the plan that is right behind a token; -1 where no answer begins
    branches: Tensor | None = None  # of trees: 0 for the conversation, 1 and on for the next questions, -1 for padding

    def positions(self) -> Tensor | None:
        """Where a token stands in its conversation, when that is not its place in the row."""
        if self.branches is None:
            return None
        places = torch.arange(self.ids.shape[1]).expand_as(self.ids)
        starts = torch.zeros_like(places)
        starts[:, 1:] = places[:, 1:] * (self.branches[:, 1:] != self.branches[:, :-1])  # (B, T), 0 inside a branch
        is_trunk = self.branches == 0
        trunks = is_trunk.sum(1, keepdim=True)  # (B, 1)
        return torch.where(is_trunk, places, places - starts.cummax(1).values + trunks)

    def attention(self) -> Tensor | None:
        """(rows, 1, tokens, tokens): what each token sees, when that is not all that came before."""
        if self.branches is None:
            return None
        sees = (self.branches[:, None, :] == 0) | (self.branches[:, None, :] == self.branches[:, :, None])
        return sees.tril()[:, None]


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

    def draw(self, phase: Phase) -> Drawn:
        """A batch; a conversation has at most ``phase.length + 1`` tokens."""
        others = max(0.0, 1 - phase.singles - phase.recitals - phase.trees)
        weights = (phase.singles, phase.recitals, phase.trees, others)
        kind = self._rng.choices(("singles", "recitals", "trees", "conversations"), weights)[0]
        if kind == "trees":
            trees = [self._tree(phase) for _ in range(TREES)]
            return self._drawn([row for row, _ in trees], _padded([branches for _, branches in trees], -1))
        if kind == "singles":
            return self._drawn(self._singles())
        if kind == "recitals":
            return self._drawn([self._recital(answer) for answer in self._rng.sample(corpus.answers(), RECITALS)])
        return self._drawn([self._conversation(phase) for _ in range(phase.rows)])

    def _drawn(self, rows: Sequence[Row], branches: Tensor | None = None) -> Drawn:
        ids, is_told, plans = zip(*rows, strict=True)
        filler = self._tokenizer.pad_token_id
        return Drawn(_padded(ids, filler), _padded(is_told, False), _padded(plans, -1), branches)

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
        row = self._opening(is_followed=False)
        while True:
            question, answer = self._sampler.turn()
            told = self._earlier(answer, phase)
            if len(row[0]) + len(self._asked(question)) + len(told) + LAST_TURN > phase.length:
                room = phase.length + 1
                ids, is_told, plans = _joined(row, self._turn(question, answer, is_whole=True))
                return ids[:room], is_told[:room], plans[:room]
            row = _joined(row, self._earlier_turn(question, answer, told))

    def _tree(self, phase: Phase) -> tuple[Row, list[int]]:
        row = self._opening(is_followed=True)
        here = self._sampler.place()
        for _ in range(self._rng.choices((1, 2, 3), (6, 3, 1))[0]):
            question, answer = self._sampler.turn()
            turn = self._earlier_turn(question, answer, self._earlier(answer, phase))
            if here.topic_id and len(row[0]) + len(turn[0]) > TRUNK:
                break
            row, here = _joined(row, turn), self._sampler.place()
        branches = [0] * len(row[0])
        for branch in range(1, BRANCHES + 1):
            self._sampler.go_to(here)
            question, answer = self._sampler.turn()
            # The last one is told as well.
            next_turn = (
                self._earlier_turn(question, answer, [])
                if branch < BRANCHES
                else self._turn(question, answer, is_whole=self._rng.random() < WHOLE)
            )
            row = _joined(row, next_turn)
            branches += [branch] * len(next_turn[0])
        return row, branches

    def _opening(self, *, is_followed: bool) -> Row:
        system = self._sampler.start(is_followed=is_followed)
        tokens = [self._special["system"], *self._encode(system), self._tokenizer.eos_token_id] if system else []
        return tokens, [False] * len(tokens), [-1] * len(tokens)

    def _earlier(self, answer: str, phase: Phase) -> list[int]:
        """The tokens of an answer that further turns follow: whole, or broken off."""
        told = self._told[answer]
        if len(told) > 12 and self._rng.random() < phase.short:
            return [*told[: self._rng.randint(4, 9)], self._tokenizer.eos_token_id]
        return told

    def _turn(self, question: str, answer: str, *, is_whole: bool) -> Row:
        """A turn whose answer is told behind its plan, to the end or only how it begins."""
        asked, told = self._asked(question), self._told[answer]
        told = told if is_whole else told[: self._rng.randint(4, 9)]
        tokens = [*asked, self._plans[answer], *told]
        is_told = [*[False] * (len(asked) + 1), *[True] * len(told)]
        return tokens, is_told, [*[-1] * (len(asked) - 1), self._plans[answer], *[-1] * (len(told) + 1)]

    def _earlier_turn(self, question: str, answer: str, told: list[int]) -> Row:
        """A turn that others follow: the plan is to be known, and does not stand there."""
        asked = self._asked(question)
        tokens = [*asked, *told]
        return tokens, [False] * len(tokens), [*[-1] * (len(asked) - 1), self._plans[answer], *[-1] * len(told)]

    def _asked(self, question: str) -> list[int]:
        special = self._special
        return [special["user"], *self._encode(question), self._tokenizer.eos_token_id, special["assistant"]]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _joined(first: Row, second: Row) -> Row:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
