"""The frozen questions, and the rule that keeps them apart from the training questions.

The rule: the words of a held-out question share at most 0.6 (Jaccard) with those of any question that training shows.
The written forms keep it by how the held-out questions are worded (a test checks it); what the sampler makes of them by
rewording, fillers and typing errors keeps it because ``Guard`` throws away what comes too near.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from workers.demo_model import corpus, patterns

MAX_JACCARD = 0.6


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the id of its only right answer."""

    question: str
    answer_id: str


def conversations() -> list[list[Turn]]:
    """The held-out conversations, of one or two turns."""
    return _conversations("heldout.txt")


def development() -> list[list[Turn]]:
    """The conversations to choose by, of one or two turns; off-topic ones are among them."""
    return _conversations("development.txt")


def _conversations(name: str) -> list[list[Turn]]:
    found = []
    for line in corpus.lines(name):
        turns = [turn.rsplit(" => ", 1) for turn in line.split(" >> ")]
        found.append([Turn(question, answer_id) for question, answer_id in turns])
    return found


def offtopic() -> list[str]:
    """The held-out questions that only the refusal answers."""
    return corpus.lines("offtopic_heldout.txt")


def words(text: str) -> frozenset[str]:
    """The set of words that the rule compares."""
    return frozenset(re.findall(r"[\w'/_.+-]*\w", text.lower()))


def written_forms() -> set[str]:
    """Every question form as written, brackets and families expanded, follow-ups included."""
    data = corpus.load()
    base = {question for _, question in corpus.forms()}
    base |= {form for topic in data.topics.values() for q in topic.whys for form in patterns.expand(q)}
    base |= {form for intent in data.followups.values() for q in intent.questions for form in patterns.expand(q)}
    for family, questions in data.about.items():
        members = corpus.PLANETS if family == "planet" else [country.name for country in data.countries]
        base |= {form.replace("{x}", member) for q in questions for form in patterns.expand(q) for member in members}
    return base


class Guard:
    """Tells which questions come too near to a held-out one."""

    def __init__(self, questions: set[str] | None = None) -> None:
        """Guard ``questions``, or all that are frozen."""
        if questions is None:
            questions = {turn.question for turns in conversations() for turn in turns} | set(offtopic())
        self._known = [words(question) for question in questions]
        self._by_word: dict[str, set[int]] = {}
        for index, members in enumerate(self._known):
            for word in members:
                self._by_word.setdefault(word, set()).add(index)

    def is_too_near(self, question: str) -> bool:
        """True when the Jaccard index to any held-out question is over the limit."""
        return self.nearest(question) > MAX_JACCARD

    def nearest(self, question: str) -> float:
        """The largest Jaccard index to a held-out question."""
        own = words(question)
        shared = Counter(index for word in own for index in self._by_word.get(word, ()))
        return max((n / (len(own) + len(self._known[index]) - n) for index, n in shared.items()), default=0.0)
