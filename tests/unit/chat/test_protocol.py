"""What a client may say: every frame is read as meant, or refused with a code that names what is wrong."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatproject.chat import protocol, wire
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.protocol import Params, Regenerate, Resume, Send, Stop
from chatproject.contract.frames import End, Frame
from chatproject.contract.messages import Usage
from chatproject.generations.streaming.reader import Queued, State

ID = "0b0e3fe3-6d6b-4f2d-9c0b-0f3a2f6f7a01"
OTHER = "1b0e3fe3-6d6b-4f2d-9c0b-0f3a2f6f7a02"


def read(**fields: Any) -> protocol.Inbound:
    return protocol.parse(protocol.decode(json.dumps(fields)))


def refusal(text: str | None) -> Refused:
    with pytest.raises(Refused) as caught:
        protocol.parse(protocol.decode(text))
    return caught.value


def test_every_promised_frame_is_read() -> None:
    assert read(type="send", id=ID, conversation=None, text=" hi ") == Send(id=ID, text=" hi ")
    params = {"temperature": 0, "top_p": 0.5, "top_k": 3, "max_tokens": 5, "seed": 7, "stop": ["x"]}
    assert read(type="send", id=ID, conversation=OTHER, text="hi", params=params, replaces=ID, model="demo") == Send(
        id=ID, text="hi", conversation=uuid.UUID(OTHER), replaces=uuid.UUID(ID), model="demo",
        params=Params(temperature=0.0, top_p=0.5, top_k=3, max_tokens=5, seed=7, stop=("x",)),
    )  # fmt: skip
    assert read(type="regenerate", id=ID, generation=OTHER) == Regenerate(id=ID, generation=uuid.UUID(OTHER))
    assert read(type="stop", generation=ID) == Stop(generation=ID)
    assert read(type="resume", generation=ID, after=4) == Resume(generation=ID, after=4)


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        (None, Refusal.BAD_FRAME, "Binary"),
        ("", Refusal.BAD_FRAME, "JSON"),
        ("null", Refusal.BAD_FRAME, "object"),
        ("[" * 60_000, Refusal.BAD_FRAME, "JSON"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, Refusal.BAD_FRAME, "JSON"),
        ('{"type":"stop","generation":-Infinity}', Refusal.BAD_FRAME, "JSON"),
        ('{"type":"resume","after":' + "1" * 5_000 + "}", Refusal.BAD_FRAME, "JSON"),
        ('{"type":"resume","after":1e400,"generation":"<id>"}', Refusal.BAD_CURSOR, "after"),
        ('{"type":"resume","after":true,"generation":"<id>"}', Refusal.BAD_CURSOR, "after"),
        ('{"type":"stop","type":"send"}', Refusal.BAD_FRAME, "'type'"),
        ('"' + "é" * 40_000 + '"', Refusal.BAD_FRAME, "80,002 bytes"),
        ('{"text":"hi"}', Refusal.BAD_FRAME, "type must be"),
        ('{"type":"sing"}', Refusal.BAD_FRAME, "'sing'"),
        ('{"type":"stop","generation":"<id>","whence":1}', Refusal.BAD_PARAMS, "'whence'"),
        ('{"type":"stop","generation":"<ID>"}', Refusal.BAD_PARAMS, "generation"),
        ('{"type":"stop","generation":"{<id>}"}', Refusal.BAD_PARAMS, "generation"),
        ('{"type":"stop"}', Refusal.BAD_PARAMS, "generation"),
        ('{"type":"send","id":"<id>","text":"a\\u0000b"}', Refusal.BAD_PARAMS, "NUL"),
        ('{"type":"send","id":"<id>","text":"a\\ud800b"}', Refusal.BAD_PARAMS, "Unicode"),
        ('{"type":"send","id":"<id>","text":" \\u200b\\n"}', Refusal.EMPTY_TEXT, "empty"),
        ('{"type":"send","id":"<id>","text":"' + "x" * 32_001 + '"}', Refusal.TEXT_TOO_LONG, "32,001"),
        ('{"type":"send","id":"<id>","text":"hi","conversation":7}', Refusal.BAD_PARAMS, "conversation"),
        ('{"type":"send","id":"<id>","text":"hi","model":"A b"}', Refusal.MODEL_UNKNOWN, "'A b'"),
        ('{"type":"send","id":"<id>","text":"hi","params":[]}', Refusal.BAD_PARAMS, "params"),
        ('{"type":"send","id":"<id>","text":"hi","params":{"top_k":1.5}}', Refusal.BAD_PARAMS, "top_k"),
        ('{"type":"send","id":"<id>","text":"hi","params":{"temperature":1e999}}', Refusal.BAD_PARAMS, "temperature"),
        ('{"type":"send","id":"<id>","text":"hi","params":{"min_p":2}}', Refusal.BAD_PARAMS, "min_p"),
        ('{"type":"send","id":"<id>","text":"hi","params":{"logprobs":1}}', Refusal.BAD_PARAMS, "logprobs"),
    ],
)  # fmt: skip
def test_refusal_names_what_is_wrong(text: str | None, code: Refusal, named: str) -> None:
    refused = refusal(text and text.replace("<id>", ID).replace("<ID>", ID.upper()))
    assert (refused.code, named in refused.message) == (code, True), refused.message


def test_longest_text_is_taken_at_its_limit() -> None:
    frame = read(type="send", id=ID, text="x" * 32_000)
    assert isinstance(frame, Send)
    assert len(frame.text) == 32_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["type", "id", "conversation", "text", "params", "model", "replaces", "generation", "after"]
VALUES = st.sampled_from(["send", "stop", "resume", "regenerate", ID, "", "\ud800", "\x00", None, 0, 1.5, {"seed": 1}])


@settings(max_examples=400, deadline=None)
@given(st.text() | JSON.map(json.dumps) | st.dictionaries(st.sampled_from(NAMES), VALUES | JSON).map(json.dumps))
def test_whatever_comes_is_read_or_refused_in_words(text: str) -> None:
    fields: dict[str, Any] = {}
    try:
        fields = protocol.decode(text)
        assert isinstance(protocol.parse(fields), Send | Regenerate | Stop | Resume)
    except Refused as refused:
        told = wire.error(refused, client_id=protocol.client_id_of(fields), generation=protocol.generation_of(fields))
        answer = json.loads(told.encode("utf-8"))  # any client can read it
        assert answer["type"] == "error"
        assert answer["message"]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 10**6), st.integers(0, 10**6))
def test_delta_written_by_hand_is_the_json_it_stands_for(text: str, seq: int, at: int) -> None:
    told = wire.frame(Frame(generation_id=ID, run=1, seq=seq, kind="delta", at=at, text=text))
    assert json.loads(told.encode("utf-8")) == {"type": "delta", "generation": ID, "seq": seq, "at": at, "text": text}


def test_told_frames_have_exactly_the_promised_fields() -> None:
    def told(frame: Frame) -> Any:
        return json.loads(wire.frame(frame))

    assert told(Frame(generation_id=ID, run=1, seq=1, kind="started")) == {
        "type": "started",
        "generation": ID,
        "seq": 1,
    }
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    done = told(
        Frame(generation_id=ID, run=1, seq=4, kind="end", end=End(status="cancelled", usage=usage, sha256="ab"))
    )
    assert (done["type"], done["seq"], done["reason"], done["sha256"]) == ("finished", 4, "cancelled", "ab")
    assert (done["usage"]["prompt_tokens"], done["usage"]["completion_tokens"]) == (3, 2)
    failed = told(Frame(generation_id=ID, run=1, seq=1, kind="end", end=End(status="expired")))
    assert (failed["type"], failed["code"]) == ("failed", "expired")
    assert failed["message"]
    queued = Queued(generation_id=ID, position=2, eta_s=None)
    assert json.loads(wire.queued(queued)) == {"type": "queued", "generation": ID, "position": 2, "eta_s": None}
    state = State(generation_id=ID, thread=OTHER, status="running", seq=3)
    assert json.loads(wire.state(state)) == {
        "type": "state", "generation": ID, "conversation": OTHER, "status": "running", "seq": 3,
    }  # fmt: skip
    limited = Refused(Refusal.RATE_LIMITED, "Wait.", retry_after_s=1.5)
    assert json.loads(wire.error(limited, client_id=ID)) == {
        "type": "error", "code": "rate_limited", "message": "Wait.", "id": ID, "retry_after_s": 1.5,
    }  # fmt: skip
