"""Frames, logs and messages between the sides."""

from __future__ import annotations

import dataclasses
import json

import msgpack
import pytest

from chatproject.contract import frames
from chatproject.contract.errors import ContractError, Failure, FinishReason
from chatproject.contract.frames import End, Frame, TokenLogprob, fold
from chatproject.contract.messages import GenerationRequest, Lease, ModelStatus, SamplingParams, Turn, Usage
from chatproject.contract.names import Lane, is_model_slug, model_slug

ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def frame(seq: int, kind: str = "delta", *, run: int = 5, at: int = 0, text: str = "", tokens: tuple[int, ...] = ()):
    return Frame(generation_id=ID, run=run, seq=seq, kind=kind, at=at, text=text, tokens=tokens)  # type: ignore[arg-type]


def entries_of(*log: Frame) -> list[tuple[str, dict[str, str]]]:
    return [(f"{each.run}-{each.seq}", each.entry()) for each in log]


END = End(
    status="done",
    reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=3, completion_tokens=2, engine_s=0.5),
    sha256="ab",
)


def test_a_log_folds_to_the_answer_over_several_runs() -> None:
    first = [("5-0", {"k": "start"}), *entries_of(frame(1, "started"), frame(2, text="Grüß ", tokens=(1, 2)))]
    second = [("9-0", {"k": "start"}), *entries_of(frame(3, run=9, at=5, text="Gott", tokens=(3,)))]
    log = fold(ID, [*first, *second])
    assert (log.run, log.seq, log.text, log.tokens) == (9, 3, "Grüß Gott", (1, 2, 3))
    assert [each.seq for each in log.frames] == [1, 2, 3]
    assert log.end is None


def test_the_end_and_that_it_is_stored_are_read_from_the_log() -> None:
    end = Frame(generation_id=ID, run=5, seq=2, kind="end", end=END)
    rows = [*entries_of(frame(1, "started"), end), ("5-3", {"k": "stored"})]
    log = fold(ID, rows)
    assert (log.end, log.end_seq, log.is_stored) == (END, 2, True)


def test_an_end_by_others_than_a_worker_gets_the_checksum_of_the_text_before_it() -> None:
    """A tab that read it from the log was told another one than who heard it from `records`. Found by cancel_race."""
    end = Frame(generation_id=ID, run=5, seq=3, kind="end", end=dataclasses.replace(END, sha256=""))
    log = fold(ID, entries_of(frame(1, "started"), frame(2, text="Mars"), end))
    assert log.end is not None
    assert log.end.sha256 == frames.answer_sha256("Mars")
    assert log.frames[-1].end == log.end


@pytest.mark.parametrize(
    "rows",
    [
        entries_of(frame(1, "started"), frame(3, text="x")),
        entries_of(frame(1, "started"), frame(2, at=4, text="x")),
        [("5-1", {"k": "nonsense"})],
        entries_of(frame(1, "started"), Frame(generation_id=ID, run=5, seq=2, kind="end", end=END), frame(3, text="x")),
    ],
)
def test_a_log_with_a_gap_or_something_unknown_is_refused(rows: list[tuple[str, dict[str, str]]]) -> None:
    with pytest.raises(ContractError):
        fold(ID, rows)


def test_frames_travel_through_the_channel_layer_unchanged_but_for_token_ids() -> None:
    sent = [frame(2, at=1, text="né🙂", tokens=(4,)), Frame(generation_id=ID, run=5, seq=3, kind="end", at=4, end=END)]
    received = frames.frames_of_message(frames.channel_message(sent))
    assert [(each.seq, each.at, each.text, each.tokens) for each in received] == [(2, 1, "né🙂", ()), (3, 4, "", ())]
    assert received[1].end == END


def test_an_end_of_each_kind_survives_the_log() -> None:
    for end in (
        END,
        End(status="cancelled", reason=FinishReason.CANCELLED),
        End(status="failed", code=Failure.NUMERICAL, message="why"),
        End(status="expired", code=Failure.EXPIRED),
    ):
        assert End.from_entry(end.entry()) == end


def test_logprobs_travel_in_the_log_and_in_the_channel_and_cost_nothing_when_not_asked() -> None:
    told = (TokenLogprob(b"n\xc3", -0.25, ((b"n\xc3", -0.25), (b"\xa9", -9999.0))), TokenLogprob(b"\xa9", -1.5))
    sent = [
        Frame(generation_id=ID, run=5, seq=1, kind="started"),
        Frame(generation_id=ID, run=5, seq=2, kind="delta", text="né", tokens=(4, 5), logprobs=told),
    ]
    assert fold(ID, entries_of(*sent)).frames[1].logprobs == told
    message = msgpack.unpackb(msgpack.packb(frames.channel_message(sent)))
    assert [frame.logprobs for frame in frames.frames_of_message(message)] == [(), told]
    assert len(sent[0].wire()) == 7, "web processes that know no logprobs still read it"
    newer = {"type": frames.CHANNEL_MESSAGE_TYPE, "frames": [[*sent[1].wire(), {"of_tomorrow": 1}]]}
    assert [frame.logprobs for frame in frames.frames_of_message(newer)] == [told], "what is behind them is left out"
    for bad in ("nonsense", "[[1,2,3]]", "[5]", '[["\u0151",0,[]]]'):
        with pytest.raises(ContractError):
            fold(ID, [("5-1", sent[0].entry()), ("5-2", sent[1].entry() | {"lp": bad})])


def test_a_request_survives_json_and_another_version_is_refused() -> None:
    request = GenerationRequest(
        generation_id=ID, model="demo", lane=Lane.VIP, user_id="u", turns=(Turn(role="user", text="Zoë\n🙂"),),
        params=SamplingParams(seed=2**63 - 1, stop=("a", "b")), accepted_ms=1, expires_ms=2, watcher="c",
    )  # fmt: skip
    assert GenerationRequest.from_json(request.to_json()) == request
    assert "logit_bias" not in request.to_json(), "older workers read it as long as it asks for no more than they know"
    wishing = SamplingParams(logit_bias=((5, -1.0),), logprobs=0, repetition_penalty=1.1, min_p=0.2)
    request = dataclasses.replace(request, params=wishing)
    assert GenerationRequest.from_json(request.to_json()) == request
    with pytest.raises(ContractError, match="version 99"):
        GenerationRequest.from_json(request.to_json().replace('"version":1', '"version":99'))
    for text in ("", "[]", "{}", '{"generation_id": 1}', "[" * 100_000, request.to_json().replace('"vip"', '"none"')):
        with pytest.raises(ContractError):
            GenerationRequest.from_json(text)


def test_the_json_of_a_request_is_the_dataclass_without_wishes_that_nobody_has() -> None:
    params = SamplingParams(stop=("a", "b"), logit_bias=((7, -1.5),), logprobs=0, min_p=0.1)
    request = GenerationRequest(
        generation_id="g", model="demo", lane=Lane.VIP, user_id="u", weight=2.0, params=params, accepted_ms=1,
        turns=(Turn(role="system", text="é"), Turn(role="user", text='"\n')), expires_ms=2, attempt=3, watcher="w",
    )  # fmt: skip
    told = json.loads(request.to_json())
    fields = json.loads(json.dumps(dataclasses.asdict(request)))
    assert set(fields["params"]) - set(told["params"]) == {
        "repetition_penalty", "presence_penalty", "frequency_penalty"
    }  # fmt: skip
    assert told | {"params": fields["params"] | told["params"]} == fields
    assert list(told) == list(fields)
    assert "é" in request.to_json()
    assert ": " not in request.to_json()


def test_a_lease_names_slot_boot_and_run_even_when_the_slot_has_colons() -> None:
    lease = Lease(slot="host:1", boot="ab", run=77)
    assert Lease.parse(str(lease)) == lease
    with pytest.raises(ContractError):
        Lease.parse("nonsense")


def test_a_status_of_a_newer_worker_is_refused_with_a_sentence() -> None:
    with pytest.raises(ContractError, match="not a model status"):
        ModelStatus.from_json('{"model": "demo", "novelty": 1}')


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b-instruct-gptq-int4"),
        ("/srv/models/My Model/", "my-model"),
        ("///", "model"),
    ],
)
def test_a_model_name_becomes_a_slug(name: str, slug: str) -> None:
    assert model_slug(name) == slug
    assert is_model_slug(slug)
