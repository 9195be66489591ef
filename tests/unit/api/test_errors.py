"""Every refusal and failure has its HTTP status, and says whether to try again; a waiting stream is kept open."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from chatproject.accounts.errors import Refused
from chatproject.api import errors
from chatproject.api.answer import Accepted, Answer, Delta, Silence
from chatproject.api.inbox import Inbox
from chatproject.contract.errors import Failure, FinishReason, Refusal
from chatproject.contract.frames import End, Frame
from chatproject.generations.streaming.reader import State

ROOT = Path(__file__).resolve().parents[3]
ID = str(uuid.uuid4())


@pytest.mark.parametrize("code", list(Refusal))
def test_every_refusal_has_a_status_in_both_dialects(code: Refusal) -> None:
    refused = Refused(code, retry_after_s=1.2)
    answer = errors.of_refusal(refused).response()
    assert 400 <= answer.status_code < 600
    assert answer["retry-after"] == "2"
    assert errors.of_refusal(refused, is_plain=True).plain_response().status_code == answer.status_code


@pytest.mark.parametrize("code", list(Failure))
def test_every_failure_has_a_status_and_a_sentence(code: Failure) -> None:
    failed = errors.of_end(End(status="failed", code=code))
    assert failed.status >= 400
    assert failed.message
    assert failed.code == code


def test_a_client_does_not_repeat_what_cannot_succeed_today() -> None:
    quota = errors.of_refusal(Refused(Refusal.QUOTA_EXCEEDED, retry_after_s=3600))
    assert (quota.status, quota.headers["x-should-retry"], quota.headers["retry-after"]) == (429, "false", "3600")
    rate = errors.of_refusal(Refused(Refusal.RATE_LIMITED, retry_after_s=3))
    assert (rate.status, rate.headers.get("x-should-retry")) == (429, None)


def test_a_refused_setting_is_named_as_the_client_named_it() -> None:
    error = errors.of_refusal(Refused(Refusal.BAD_PARAMS, "params.top_p must be more than 0 to 1."))
    assert (error.param, error.message) == ("top_p", "top_p must be more than 0 to 1.")


def frame(seq: int, text: str = "", *, at: int = 0, end: End | None = None) -> Frame:
    return Frame(generation_id=ID, run=1, seq=seq, kind="end" if end else "delta", at=at, text=text, end=end)


async def heard(inbox: Inbox, *, told: str | None = "") -> list[object]:
    accepted = Accepted(generation_id=ID, created=0, model="m")
    answer = Answer(accepted, uuid.uuid4(), inbox, stops_when_left=False, told=told)
    return [event async for event in answer.events(ping_s=0.05)]


async def test_silence_is_told_until_the_answer_comes() -> None:
    inbox = Inbox()
    end = End(status="done", reason=FinishReason.STOP)
    asyncio.get_running_loop().call_later(0.12, inbox.on_frames, [frame(2, "hi"), frame(3, end=end)])
    told = await heard(inbox)
    assert told[0] == Silence()
    assert told[-2:] == [Delta(text="hi", seq=2), end]


@pytest.mark.parametrize(
    ("told", "rest", "replaces"),
    [("", "whole", False), ("who", "le", False), ("so", "whole", True), (None, "whole", True)],
)
async def test_when_the_log_is_gone_the_whole_text_comes_once(told: str | None, rest: str, replaces: bool) -> None:
    inbox = Inbox()
    end = End(status="done", reason=FinishReason.STOP)
    inbox.on_state(State(generation_id=ID, thread=None, status="done", seq=8, text="whole"))
    inbox.on_frames([frame(9, end=end)])
    assert await heard(inbox, told=told) == [Delta(text=rest, seq=8, at=5 - len(rest), replaces=replaces), end]


def test_the_counters_of_several_processes_are_shown_as_one(tmp_path: Path) -> None:
    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"from chatproject import metrics\n{code}"], cwd=ROOT, check=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    for _ in range(2):
        run("metrics.accepted(lane='vip')\nmetrics.refused(code='queue_full')")
    shown = run("print(metrics.render().decode())")
    assert 'chat_generations_accepted_total{lane="vip"} 2.0' in shown
    assert 'chat_generations_refused_total{code="queue_full"} 2.0' in shown
