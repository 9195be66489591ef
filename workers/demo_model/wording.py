"""Reword and roughen a question, so that the model learns what was asked and not how.

Rewordings and fillers are closed lists (the held-out rule is checked against them); roughening is random: case,
punctuation, typing errors, dropped words. Knows nothing of answers.
"""

from __future__ import annotations

import random
import re
from functools import cache

from workers.demo_model import corpus

_NEIGHBOURS = {
    "a": "sq",
    "e": "wr",
    "i": "uo",
    "o": "ip",
    "t": "ry",
    "n": "bm",
    "s": "ad",
    "r": "et",
    "l": "k",
    "u": "yi",
    "h": "gj",
}
_CONTRACTIONS = (("What is", "What's"), ("I am", "I'm"), ("do not", "don't"), ("cannot", "can't"),
                 ("You are", "You're"), ("How is", "How's"), ("Who is", "Who's"), ("Where is", "Where's"),
                 ("I would", "I'd"), ("is not", "isn't"))  # fmt: skip


def rewordings(question: str) -> list[str]:
    """Other ways to ask it, without the question itself."""
    found = []
    for start, others in _rewordings().items():
        match = re.fullmatch(start, question)
        if match:
            groups = [group or "" for group in match.groups()]
            lowered = {f"{index}l": group[:1].lower() + group[1:] for index, group in enumerate(groups)}
            for other in others:
                text = other
                for index, group in enumerate(groups):
                    text = text.replace(f"{{{index}l}}", lowered[f"{index}l"]).replace(f"{{{index}}}", group)
                found.append(text[:1].upper() + text[1:])
    return found


def roughen(question: str, rng: random.Random, *, reword: bool = True) -> str:
    """The question as somebody might type it."""
    kind = rng.random() if reword else 1.0
    if kind < 0.07:
        question = _only_what_matters(question, rng)
    elif kind < 0.29:
        question = rng.choice(rewordings(question) or [question])
    if reword and rng.random() < 0.3:
        question = _replace_words(question, rng)
    if rng.random() < 0.25:
        question = _contract(question, rng)
    if reword and rng.random() < 0.15:
        question = _drop_word(question, rng)
    if reword and rng.random() < 0.28:
        question = f"{rng.choice(_fillers('before'))} {_lower_first(question)}"
    if reword and rng.random() < 0.22:
        question = f"{question}{rng.choice((',', '', ''))} {rng.choice(_fillers('after'))}"
    question += rng.choices(("", "?", ".", "!", "??", " ?", "...", "\n", " "), (38, 44, 8, 3, 1, 2, 1, 1, 2))[0]
    for _ in range(rng.choices((0, 1, 2), (80, 16, 4))[0]):
        question = _mistype(question, rng)
    case = rng.random()
    if case < 0.33:
        return question.lower()
    return question.upper() if case > 0.985 else question


def _only_what_matters(text: str, rng: random.Random) -> str:
    """The words that carry the meaning, among others that carry little: nobody's grammar, but anybody's question."""
    little = _between()
    kept = [
        word
        for word in re.findall(r"[^\s,.?!:]+", text)
        if word.lower() not in little and word not in ("I", "me", "you")
    ]
    if not kept or len(kept) * 4 < len(text.split()):
        return text
    if len(kept) > 1 and rng.random() < 0.3:
        i = rng.randrange(len(kept) - 1)
        kept[i], kept[i + 1] = kept[i + 1], kept[i]
    for _ in range(rng.randint(1, 6)):
        kept.insert(rng.randint(0, len(kept)), rng.choice(little))
    return " ".join(kept)


def _replace_words(text: str, rng: random.Random) -> str:
    """One word or two replaced by another of the same meaning, where the thesaurus has one."""
    known, words = _synonyms(), text.split(" ")
    places = [i for i, word in enumerate(words) if word.strip(",.").lower() in known]
    for i in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        bare = words[i].strip(",.")
        words[i] = words[i].replace(bare, rng.choice(known[bare.lower()]))
    return " ".join(words)


def _lower_first(text: str) -> str:
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]


def _contract(text: str, rng: random.Random) -> str:
    long, short = rng.choice(_CONTRACTIONS)
    return text.replace(long, short)


def _drop_word(text: str, rng: random.Random) -> str:
    # Only a word that carries little: dropping "Mars" or "not" would ask something else.
    words = text.split(" ")
    light = [i for i, w in enumerate(words) if w.lower() in _LIGHT]
    if len(words) < 4 or not light:
        return text
    words.pop(rng.choice(light))
    return " ".join(words)


def _mistype(text: str, rng: random.Random) -> str:
    places = [i for i, letter in enumerate(text[1:], 1) if letter.isalpha() and text[i - 1].isalpha()]
    if len(text) < 12 or not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    if kind == 2:
        return text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :]
    return text[:i] + rng.choice(_NEIGHBOURS.get(text[i], text[i])) + text[i + 1 :]


@cache
def _rewordings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in corpus.lines("rewordings.txt"):
        if line.startswith("@ "):
            others = found.setdefault(line[2:], [])
        else:
            others.append(line.removeprefix("> "))
    return found


@cache
def _synonyms() -> dict[str, list[str]]:
    pairs = (line.split(": ", 1) for line in corpus.lines("synonyms.txt"))
    return {word: others.split("|") for word, others in pairs}


@cache
def _fillers(side: str) -> list[str]:
    return [line.removeprefix(f"{side}: ") for line in corpus.lines("fillers.txt") if line.startswith(side)]


@cache
def _between() -> tuple[str, ...]:
    return (*" ".join(_fillers("between")).split(), "I", "you", "me", "I", "you")


_LIGHT_WORDS = (
    "is are was the a an do does can i you me to of in my it please will would could tell so there for this that with"
)
_LIGHT = frozenset(_LIGHT_WORDS.split())
