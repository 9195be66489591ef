"""The written dialogues: intents with their question patterns, answers and follow-ups.

An answer is named by its id: ``mars``, ``capital:France``, ``more:mars``, ``why:queue``, ``refusal``.
Knows the data files. Knows nothing of tokens, noise or training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from workers.demo_model import patterns

DIALOGUES = Path(__file__).parent / "dialogues"
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
WRITTEN = ("product", "smalltalk", "facts", "families")  # answers, and the first questions
ASKED = tuple(  # more ways to ask
    f"asked_{name}"
    for name in (
        "product_1",
        "product_2",
        "product_3",
        "product_4",
        "smalltalk_1",
        "smalltalk_2",
        "smalltalk_3",
        "smalltalk_4",
        "science",
        "world",
        "facts_3",
        "facts_4",
        "followups",
        "why",
    )
)
FALLBACKS = ("no_more", "no_why", "nothing_before", "refusal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """A row of countries.txt."""

    name: str
    capital: str
    sight: str
    languages: str
    greeting: str


@dataclass(slots=True, kw_only=True)
class Intent:
    """One thing that can be asked, and what is answered."""

    id: str
    questions: list[str] = field(default_factory=list)  # patterns, see patterns.py
    answer: str = ""
    more: str = ""
    why: str = ""
    whys: list[str] = field(default_factory=list)  # patterns that ask why in words of this very answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All dialogues, as written."""

    topics: dict[str, Intent]  # what can be asked at any time; capitals and languages filled in
    followups: dict[str, Intent]  # more, why, repeat: meaning depends on the turn before
    about: dict[str, list[str]]  # family -> patterns such as "What about {x}?"
    countries: list[Country]
    offtopic: list[str]  # patterns with slots
    slots: dict[str, list[str]]

    def answer(self, answer_id: str) -> str:
        """The text of an answer; KeyError when there is none."""
        kind, _, rest = answer_id.partition(":")
        text = getattr(self.topics[rest], kind) if kind in ("more", "why") else self.topics[answer_id].answer
        if not text:
            raise KeyError(answer_id)
        return text


@cache
def load() -> Corpus:
    """Read every data file once."""
    intents: dict[str, Intent] = {}
    for name in (*WRITTEN, *ASKED):
        _read_intents(DIALOGUES / f"{name}.txt", intents)
    countries = [
        Country(**dict(zip(Country.__slots__, line.split("|"), strict=True))) for line in lines("countries.txt")
    ]
    families = {name: intents.pop(name) for name in ("planet", "capital", "language")}
    about = {name: intents.pop(f"{name}_about").questions for name in families}
    followups = {name: intents.pop(f"={name}") for name in ("more", "why", "repeat")}
    whys = [intents.pop(name) for name in list(intents) if name.startswith("why:")]
    topics = {intent.id.removeprefix("="): intent for intent in intents.values()}
    for intent in whys:
        topics[intent.id.removeprefix("why:")].whys = intent.questions
    for planet in PLANETS:
        topics[planet.lower()].questions += [q.replace("{x}", planet) for q in families["planet"].questions]
    for country in countries:
        for topic in (_capital(country, families["capital"]), _language(country, families["language"])):
            topics[topic.id] = topic
    for topic in topics.values():
        topic.id = topic.id.removeprefix("=")
        if not topic.answer:
            raise ValueError(f"{topic.id} has no answer")
    slots = {name: words.split() for name, words in (line.split(": ", 1) for line in lines("slots.txt"))}
    slots["country"] = [country.name for country in countries]
    offtopic = [
        line.removeprefix("? ")
        for name in ("offtopic", "asked_offtopic", "asked_offtopic_2", "asked_offtopic_3")
        for line in lines(f"{name}.txt")
    ]
    return Corpus(topics=topics, followups=followups, about=about, countries=countries, offtopic=offtopic, slots=slots)


@cache
def answers() -> list[str]:
    """Every text that is ever answered, in the order of the data; a text of two topics once."""
    texts = [text for topic in load().topics.values() for text in (topic.answer, topic.more, topic.why)]
    return list(dict.fromkeys(filter(None, texts)))


@cache
def forms() -> list[tuple[str, str]]:
    """Every (answer id, question) pair of the topics that can be asked at any time, brackets expanded."""
    return [
        (topic.id, form) for topic in load().topics.values() for q in topic.questions for form in patterns.expand(q)
    ]


def lines(name: str) -> list[str]:
    """The lines of a data file that are neither empty nor comments."""
    text = (DIALOGUES / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("%%")]


def _read_intents(path: Path, intents: dict[str, Intent]) -> None:
    intent = Intent(id="")
    target = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("%%", "@@")):
            continue
        if line.startswith("@ "):
            intent = intents.setdefault(line[2:], Intent(id=line[2:]))
            target = ""
        elif line.startswith("? "):
            intent.questions.append(line[2:])
        elif line.startswith("= "):
            target, intent.answer = "answer", line[2:]
        elif line.startswith(("more: ", "why: ")):
            target, _, text = line.partition(": ")
            setattr(intent, target, text)
        elif target:
            setattr(intent, target, f"{getattr(intent, target)}\n{line}")
        elif line:
            raise ValueError(f"{path.name}: a line outside of any answer: {line}")
    for intent in intents.values():
        for name in ("answer", "more", "why"):
            setattr(intent, name, getattr(intent, name).strip())


def _capital(country: Country, family: Intent) -> Intent:
    where = country.name if country.name != "England" else "England and of the United Kingdom"
    questions = [q.replace("{x}", country.name).replace("{c}", country.capital) for q in family.questions]
    return Intent(id=f"capital:{country.name}", questions=questions,
                  answer=f"The capital of {where} is **{country.capital}**. {country.sight}")  # fmt: skip


def _language(country: Country, family: Intent) -> Intent:
    questions = [q.replace("{x}", country.name) for q in family.questions]
    return Intent(id=f"language:{country.name}", questions=questions,
                  answer=f"In {country.name} people speak {country.languages}. "
                         f'To greet somebody there, say "{country.greeting}".')  # fmt: skip
