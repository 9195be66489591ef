"""One generation from claim to end: frames without gap, a log that can be written again, an end that is charged."""

from __future__ import annotations

import pytest

from chatproject.contract import frames
from chatproject.contract.errors import Failure, FinishReason
from chatproject.contract.messages import GenerationRequest, Lease, SamplingParams, Turn
from chatproject.contract.names import Lane
from workers.engine.interfaces import Finish, StepOutput
from workers.generation import ActiveGeneration
from workers.store import Claim, Entry

RUN = 1000


def active(earlier: tuple[Entry, ...] = ()) -> ActiveGeneration:
    request = GenerationRequest(
        generation_id="g", model="demo", lane=Lane.INTERACTIVE, user_id="u",
        turns=(Turn(role="user", text="hi"),), params=SamplingParams(), accepted_ms=1, expires_ms=2,
    )  # fmt: skip
    entries = (*earlier, (f"{RUN}-0", {"k": "start"}))
    claim = Claim(
        request=request, lease=Lease(slot="w", boot="b", run=RUN), score=1.0, is_cancelled=False,
        prefix=frames.fold("g", entries), entries=entries, channels=("chat.web.1",),
    )  # fmt: skip
    return ActiveGeneration(claim, queue_ms=7, claimed_at=0.0)


def step(*tokens: int, text: str = "", finish: Finish | None = None) -> StepOutput:
    return StepOutput(sequence_id=f"g/{RUN}", tokens=tokens, text=text, finish=finish)


def folded(generation: ActiveGeneration) -> frames.Log:
    return frames.fold("g", generation.entries)


def test_text_of_a_window_becomes_one_frame_with_all_its_tokens() -> None:
    generation = active()
    for output in (step(1, text="Mars"), step(2), step(3, text=" is")):
        generation.take(output)
    generation.cut()
    assert [(frame.kind, frame.seq, frame.at, frame.text) for frame in generation.unsent] == [
        ("started", 1, 0, ""), ("delta", 2, 0, "Mars is"),
    ]  # fmt: skip
    assert folded(generation).tokens == (1, 2, 3)


def test_logprobs_go_with_their_tokens_and_end_with_them() -> None:
    told = [frames.TokenLogprob(bytes([number]), -float(number)) for number in range(3)]
    generation = active()
    for number, text in enumerate(("", "Mars", "")):
        generation.take(StepOutput(sequence_id=f"g/{RUN}", tokens=(number,), text=text, logprobs=(told[number],)))
    generation.cut()
    generation.take(step(finish=Finish(reason="stop", completion_tokens=3)))
    (frame,) = [frame for frame in folded(generation).frames if frame.kind == "delta"]
    assert (frame.tokens, frame.logprobs) == ((0, 1, 2), tuple(told))
    generation = active()
    generation.take(StepOutput(sequence_id=f"g/{RUN}", tokens=(1,), logprobs=(told[1],)))
    generation.take(step(finish=Finish(reason="stop", completion_tokens=1)))
    assert all(not frame.logprobs for frame in folded(generation).frames), "what is held back for good is not told"


def test_tokens_without_certain_text_wait_for_the_next() -> None:
    generation = active()
    generation.take(step(9))
    generation.cut()
    assert len(generation.unsent) == 1
    assert folded(generation).tokens == ()
    generation.take(step(10, text="é"))
    generation.cut()
    assert folded(generation).tokens == (9, 10)


def test_a_resumed_run_goes_on_at_the_next_seq_and_character() -> None:
    first = active()
    first.take(step(1, 2, text="Grüß "))
    first.cut()
    earlier = tuple((id_.replace(str(RUN), "999"), fields) for id_, fields in first.entries)
    second = active(earlier)
    assert second.unsent == []
    second.take(step(3, text="Gott", finish=Finish(reason="stop", prompt_tokens=4, completion_tokens=3)))
    log = folded(second)
    assert (log.text, log.tokens, log.seq) == ("Grüß Gott", (1, 2, 3), 4)
    assert log.end is not None
    assert (log.end.reason, log.end.usage.completion_tokens, log.end.usage.queue_ms) == (FinishReason.STOP, 3, 7)
    assert log.end.sha256 == frames.answer_sha256("Grüß Gott")


def test_the_end_is_never_shown_by_the_worker() -> None:
    generation = active()
    generation.take(step(1, text="x", finish=Finish(reason="length")))
    assert [frame.kind for frame in generation.shown()] == ["started", "delta"]
    assert generation.shown() == []
    assert generation.has_news  # the log has not taken it yet


@pytest.mark.parametrize("failure", [None, Failure.NUMERICAL])
def test_a_failed_sequence_ends_with_a_code_and_a_sentence(failure: Failure | None) -> None:
    generation = active()
    generation.take(step(finish=Finish(reason="failed", failure=failure)))
    end = folded(generation).end
    assert end is not None
    assert (end.status, end.code) == ("failed", failure or Failure.ENGINE_ERROR)
    assert end.message


def test_it_ends_once() -> None:
    generation = active()
    generation.cancel()
    generation.fail(Failure.REJECTED, "too late")
    end = folded(generation).end
    assert end is not None
    assert end.status == "cancelled"


def test_nothing_comes_after_an_end() -> None:
    generation = active()
    generation.cancel()
    before = list(generation.entries)
    generation.take(step(1, text="late"))
    generation.take(step(2, text="later", finish=Finish(reason="stop", prompt_tokens=1, completion_tokens=2)))
    generation.cut()
    assert generation.entries == before


def test_a_lost_log_is_written_again_under_this_run_with_the_same_numbers() -> None:
    first = active()
    first.take(step(1, text="one "))
    first.cut()
    second = active(tuple((id_.replace(str(RUN), "999"), fields) for id_, fields in first.entries))
    second.take(step(2, text="two"))
    second.cut()
    before = folded(second)
    second.num_logged = len(second.entries)
    second.restart_log()
    assert second.num_logged == 0
    assert {id_.split("-")[0] for id_, _ in second.entries} == {str(RUN)}
    after = folded(second)
    assert (after.text, after.tokens, after.seq) == (before.text, before.tokens, before.seq)


def test_a_shorter_log_is_taken_up_where_it_ends() -> None:
    generation = active()
    generation.take(step(1, text="a"))
    generation.cut()
    generation.num_logged = len(generation.entries)
    assert generation.rewind(f"{RUN}-1")
    assert generation.last_logged_id == f"{RUN}-1"
    assert not generation.rewind("77-1")
