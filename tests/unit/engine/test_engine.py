"""One sequence's life: how it ends, what is counted, and that a resume goes on where it stopped."""

from __future__ import annotations

import pytest

from chatproject.contract.errors import Failure
from tests.unit.engine.harness import World, alone, words
from workers.fakes import FakeRunner

PROMPT = (11, 12, 13)


def test_an_answer_runs_to_max_tokens_and_is_counted() -> None:
    world = World()
    world.add("a", PROMPT, 20)
    world.run()
    finish = world.record.finish["a"]
    assert world.record.tokens["a"] == list(alone(PROMPT, 20))
    assert world.record.text["a"] == words(alone(PROMPT, 20))
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("length", 3, 20)
    assert finish.engine_s == pytest.approx(20 * 0.02)
    assert (finish.prefill_s, finish.decode_s) == (pytest.approx(0.02), pytest.approx(19 * 0.02))


def test_max_tokens_is_cut_to_the_context() -> None:
    world = World(context_tokens=40)
    world.add("a", PROMPT, 1_000)
    world.run()
    assert (world.record.finish["a"].reason, len(world.record.tokens["a"])) == ("length", 37)


@pytest.mark.parametrize("num_prefix", range(13))
def test_a_resume_from_any_place_gives_the_same_answer(num_prefix: int) -> None:
    answer = alone(PROMPT, 12)
    world = World()
    world.add("a", PROMPT, 12, prefix=answer[:num_prefix])
    world.run()
    assert answer[:num_prefix] + tuple(world.record.tokens["a"]) == answer
    assert world.record.finish["a"].completion_tokens == 12
    assert world.record.finish["a"].reason == "length"


class _EndsAt(FakeRunner):
    """A runner to which one token of the answer means the end."""

    def __init__(self, eos: int) -> None:
        super().__init__(step_ms=0, num_blocks=64, context_tokens=512)
        self.eos_tokens = frozenset({eos})


def test_the_end_token_ends_the_answer_and_is_neither_text_nor_counted() -> None:
    answer = alone(PROMPT, 10)
    world = World(runner=_EndsAt(answer[6]))
    world.add("a", PROMPT, 10)
    world.run()
    finish = world.record.finish["a"]
    assert (finish.reason, finish.completion_tokens) == ("stop", 6)
    assert world.record.tokens["a"] == list(answer[:6])
    assert world.record.text["a"] == words(answer[:6])


def test_the_answer_ends_before_a_stop_string_that_spans_tokens() -> None:
    answer = alone(PROMPT, 30)
    text = words(answer)
    stop = words(answer[9:12])[1:-2]
    world = World()
    world.add("a", PROMPT, 30, stop=(stop,))
    world.run()
    assert world.record.finish["a"].reason == "stop"
    assert world.record.text["a"] == text[: text.index(stop)]
    assert len(world.record.tokens["a"]) == 12


def test_a_stop_string_completed_before_a_resume_ends_it_without_a_token() -> None:
    answer = alone(PROMPT, 30)
    world = World()
    world.add("a", PROMPT, 30, stop=(words(answer[4:6])[:-1],), prefix=answer[:6])
    world.run()
    assert (world.record.finish["a"].reason, world.record.tokens["a"]) == ("stop", [])
    assert world.engine.steps == 0


def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    answer = alone(PROMPT, 5)
    world = World()
    world.add("a", PROMPT, 5, stop=(words(answer[3:]) + "and more",))
    world.run()
    assert world.record.text["a"] == words(answer)


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_a_cancel_ends_within_a_step_in_every_state_with_what_was_held_back(steps: int) -> None:
    """Waiting, reading a prompt of three steps, and answering."""
    prompt = tuple(range(40))
    answer = alone(prompt, 20)
    world = World(step_tokens=16)
    world.add("a", prompt, 20, stop=(words(answer[1:8]) + "never",))
    for _ in range(steps):
        world.engine.step()
    world.engine.cancel("a")
    world.engine.check_integrity()
    world.engine.step()
    assert world.record.finish["a"].reason == "cancelled"
    assert world.record.text["a"] == words(world.record.tokens["a"])
    assert world.record.tokens["a"] == list(answer[: max(0, steps - 2)])
    assert world.engine.stats().free_blocks == 64
    assert not world.engine.step()


def test_a_preempted_sequence_can_be_cancelled_with_its_text() -> None:
    world = World(max_rows=1)
    world.add("low", PROMPT, 20, priority=9)
    for _ in range(4):
        world.engine.step()
    world.add("vip", (1,), 20, priority=0)
    world.engine.step()
    world.engine.cancel("low")
    world.run()
    assert world.record.tokens["low"] == list(alone(PROMPT, 4))
    assert world.record.finish["low"].completion_tokens == 4


def test_a_drop_is_silent_even_after_an_end_that_was_not_told() -> None:
    world = World()
    for id_ in ("running", "ended", "waiting"):
        world.add(id_, PROMPT, 20)
        if id_ != "waiting":
            world.engine.step()
    world.engine.cancel("ended")
    world.record.dropped |= {"running", "ended", "waiting"}
    for id_ in world.record.dropped:
        world.engine.drop(id_)
    assert not world.engine.step()
    assert world.engine.stats().free_blocks == 64


def test_words_about_unknown_sequences_are_ignored() -> None:
    world = World()
    world.engine.cancel("nobody")
    world.engine.drop("nobody")
    assert not world.engine.step()


def test_the_largest_that_fits_is_answered_and_the_next_is_rejected() -> None:
    world = World(num_blocks=4, context_tokens=512)
    world.add("fits", range(63), 100)
    world.add("too long", range(64), 100)
    world.run()
    assert (world.record.finish["fits"].reason, len(world.record.tokens["fits"])) == ("length", 1)
    finish = world.record.finish["too long"]
    assert (finish.reason, finish.failure) == ("failed", Failure.REJECTED)
    assert finish.message == "The message takes 64 tokens; the model has room for 63. Shorten it."
