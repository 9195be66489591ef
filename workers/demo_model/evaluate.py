"""Score the committed 4-bit model, greedy, to the letter: python -m workers.demo_model.evaluate [DIRECTORY] [--verbose]

Prints how many questions get exactly the right answer: held-out ones and off-topic ones, which are frozen; development
ones, to choose by; trained forms; and questions late in a conversation. A confident wrong answer is any written answer
where the refusal, or another one, was right.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from workers.demo_model import WEIGHTS, corpus, heldout
from workers.demo_model.conversations import ConversationSampler
from workers.demo_model.dequantise import load_dense

Message = dict[str, str]
LONGEST = 330  # tokens of an answer; the longest written one is shorter
BATCH = 24


@dataclass(slots=True)
class Score:
    """Right answers out of all, and what went wrong."""

    name: str
    right: int = 0
    total: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)  # (question, what was said)

    def add(self, question: str, said: str, expected: str) -> None:
        """Count one answer."""
        self.total += 1
        self.right += said == expected
        if said != expected:
            self.wrong.append((question, said))

    def __str__(self) -> str:
        return f"{self.name:<42} {self.right:>4} of {self.total:<4} {self.right / max(1, self.total):6.1%}"


class Speaker:
    """Greedy answers for many conversations at once."""

    def __init__(self, directory: Path = WEIGHTS) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = load_dense(directory)

    @torch.inference_mode()
    def answer(self, conversations: list[list[Message]]) -> list[str]:
        """The answer to each conversation; sorted by length inside, so that little is spent on padding."""
        prompts = [self._prompt(messages) for messages in conversations]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for index, text in zip(chosen, self._batch([prompts[index] for index in chosen]), strict=True):
                answers[index] = text
        return answers

    def _prompt(self, messages: list[Message]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _batch(self, prompts: list[list[int]]) -> list[str]:
        width = max(map(len, prompts))
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])  # (B, T)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])  # (B, T)
        produced = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )[:, width:]
        texts: list[str] = []
        for row in produced.tolist():
            tokens = row[: row.index(end)] if end in row else row
            texts.append(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return texts


def score_conversations(speaker: Speaker, name: str, every: list[list[heldout.Turn]]) -> list[Score]:
    """Conversations of one or two turns; a second turn is asked after the model's own first answer."""
    data = corpus.load()
    all_turns, second = Score(f"{name} questions, all turns"), Score("  of these, second turns")
    histories: list[list[Message]] = [[] for _ in every]
    for position in range(max(map(len, every))):
        open_ones = [i for i, turns in enumerate(every) if len(turns) > position]
        for i in open_ones:
            histories[i].append({"role": "user", "content": every[i][position].question})
        for i, said in zip(open_ones, speaker.answer([histories[i] for i in open_ones]), strict=True):
            histories[i].append({"role": "assistant", "content": said})
            turn = every[i][position]
            for score in (all_turns, second)[: 1 + position]:
                score.add(turn.question, said, data.answer(turn.answer_id))
    return [all_turns, second]


def score_offtopic(speaker: Speaker) -> Score:
    """The frozen off-topic questions."""
    score = Score("off-topic questions refused")
    questions = heldout.offtopic()
    said = speaker.answer([[{"role": "user", "content": question}] for question in questions])
    for question, text in zip(questions, said, strict=True):
        score.add(question, text, corpus.load().answer("refusal"))
    return score


def score_trained(speaker: Speaker, count: int) -> Score:
    """Trained forms as written, ``count`` of them, at least one of every topic."""
    rng = random.Random(11)
    forms = corpus.forms()
    firsts = list({answer_id: (answer_id, form) for answer_id, form in rng.sample(forms, len(forms))}.values())
    chosen = (firsts + rng.sample(forms, count))[:count]
    score = Score("trained forms, as written")
    said = speaker.answer([[{"role": "user", "content": form}] for _, form in chosen])
    for (answer_id, form), text in zip(chosen, said, strict=True):
        score.add(form, text, corpus.load().answer(answer_id))
    return score


def score_late(speaker: Speaker, count: int, turns: int) -> Score:
    """The last of ``turns`` turns of sampled conversations, follow-ups and typing errors included."""
    sampler = ConversationSampler(random.Random(12))
    score = Score(f"turn {turns} of a sampled conversation")
    histories: list[list[Message]] = []
    expected: list[str] = []
    while len(histories) < count:
        system = sampler.start()
        messages = [{"role": "system", "content": system}] if system else []
        for _ in range(turns):
            question, answer = sampler.turn()
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if len(speaker.tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]) < 1000:
            histories.append(messages[:-1])
            expected.append(messages[-1]["content"])
    for messages, said, right in zip(histories, speaker.answer(histories), expected, strict=True):
        score.add(messages[-1]["content"], said, right)
    return score


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=WEIGHTS)
    parser.add_argument("--verbose", action="store_true", help="also print what went wrong")
    arguments = parser.parse_args()
    start = time.monotonic()
    speaker = Speaker(arguments.directory)
    held = score_conversations(speaker, "held-out", heldout.conversations())
    development = score_conversations(speaker, "development", heldout.development())
    off = score_offtopic(speaker)
    late = [score_late(speaker, 60, turns) for turns in (4, 9)]
    scores = [*held, off, *development, score_trained(speaker, 360), *late]
    known = {corpus.load().answer(topic_id) for topic_id in corpus.load().topics}
    for score in scores:
        print(score)
    print(f"{'confident wrong answers, off-topic':<42} {len(off.wrong):>4}")
    print(f"{'confident wrong answers, held-out':<42} {sum(said in known - _honest() for _, said in held[0].wrong):>4}")
    print(f"{time.monotonic() - start:.0f} s")
    if arguments.verbose:
        for score in scores:
            for question, said in score.wrong:
                print(f"{score.name.strip()} | {question!r} | {said[:70]!r}")


def _honest() -> set[str]:
    return {corpus.load().answer(answer_id) for answer_id in corpus.FALLBACKS}


if __name__ == "__main__":
    main()
