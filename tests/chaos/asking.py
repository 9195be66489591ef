"""Who asks what and in which way: the seed decides all of it."""

from __future__ import annotations

import random
import uuid

from tests.chaos.chats import Chat
from tests.chaos.cluster import Cluster
from tests.chaos.history import History
from tests.chaos.http_users import CompletionsUser, EventsUser, WaitingUser
from tests.chaos.person import Person
from tests.chaos.users import User

KNOWN_QUESTIONS = ("Tell me a story.", "What can you do?", "How does this service work?", "What is a planet?")
WAYS: dict[str, type[Person]] = {
    "socket": User,
    "wait": WaitingUser,  # POST /chat
    "events": EventsUser,  # POST /stream-chat, then GET /stream/<id>
    "completion": CompletionsUser,  # POST /v1/chat/completions
    "completion_stream": CompletionsUser,
}
_IN_A_HUNDRED = {"socket": 68, "wait": 5, "events": 13, "completion": 5, "completion_stream": 9}
# What comes after an answer, in the same conversation; two of it come at once.
_CONTINUATIONS = (("follow_up",), ("regenerate",), ("edit",), *[("follow_up", "follow_up")] * 2)


def make_chats(num: int, users: list[str], seed: int, *, engine: str = "fake") -> list[Chat]:
    """Return the chats of a run, each after the one it continues. The bundled model is asked what it can tell."""
    choose, chats = random.Random(seed), list[Chat]()

    def ask(user: str, way: str) -> Chat:
        number = len(chats)
        chats.append(
            chat := Chat(
                number=number, client_id=str(uuid.UUID(int=choose.getrandbits(128), version=4)), user=user, way=way,
                text=f"question {number} of run {seed}" if engine == "fake" else choose.choice(KNOWN_QUESTIONS),
                max_tokens=choose.randint(60, 400), gives_up=choose.random() < 0.1,
                # A part of the messages asks for what the first workers did not know yet.
                wishes={"min_p": 0.02} if number % 4 == 0 else {},
            )
        )  # fmt: skip
        return chat

    while len(chats) < num:
        (way,) = choose.choices(list(_IN_A_HUNDRED), list(_IN_A_HUNDRED.values()))
        first = ask(choose.choice(users), way)
        if way != "socket" or choose.random() > 0.25:
            continue
        kinds = choose.choice(_CONTINUATIONS)
        for kind in kinds:
            way = choose.choice(("socket", "socket", "wait", "events")) if kind == "follow_up" else "socket"
            chat = ask(first.user, way)
            chat.after, chat.kind, chat.is_twin = first, kind, len(kinds) > 1
            chat.gives_up = chat.gives_up or (chat.is_twin and choose.random() < 0.7)
    return chats[:num]


def user_of(chat: Chat, cluster: Cluster, history: History, seed: int) -> Person:
    """Return who asks it."""
    return WAYS[chat.way](chat, cluster, history, seed)
