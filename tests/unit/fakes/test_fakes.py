"""The fake engine: the same answer every time, readable, and honest about paging."""

from __future__ import annotations

import pytest

from chatproject.contract.messages import SamplingParams, Turn
from workers.engine.interfaces import Row
from workers.errors import RequestRejected
from workers.fakes import NUM_WORDS, FakeRunner, FakeTokenizer, word_of

SAMPLING = SamplingParams()


def _row(
    tokens: tuple[int, ...], start: int, table: tuple[int, ...], sampling: SamplingParams | None = SAMPLING
) -> Row:
    return Row(sequence_id="a", tokens=tokens, start=start, block_table=table, sampling=sampling)


def _runner() -> FakeRunner:
    return FakeRunner(step_ms=0, num_blocks=8)


def test_the_next_token_depends_on_the_tokens_not_on_blocks_chunks_mates_or_sampling() -> None:
    prompt = tuple(range(40))
    (whole,) = _runner().step([_row(prompt, 0, (0, 1, 2))])
    runner = _runner()
    assert [result.token for result in runner.step([_row(prompt[:25], 0, (7, 3, 5), None)])] == [None]
    hot = SamplingParams(temperature=2.0, seed=9)
    chunked, mate = runner.step([_row(prompt[25:], 25, (7, 3, 5), hot), _row((4,), 0, (6,))])
    assert chunked.token == whole.token != mate.token


def test_a_wrong_block_gives_a_wrong_answer() -> None:
    prompt = tuple(range(40))
    runner = _runner()
    runner.step([_row(prompt, 0, (0, 1, 2))])
    (right,) = runner.step([_row((5,), 40, (0, 1, 2))])
    (wrong,) = runner.step([_row((5,), 40, (1, 0, 2))])
    assert right.token != wrong.token


def test_a_step_takes_its_time_once_for_all_rows() -> None:
    slept: list[float] = []
    runner = FakeRunner(step_ms=20, sleep=slept.append)
    runner.step([_row((1,), 0, (0,)), _row((2,), 0, (1,))])
    assert slept == [0.02]


def test_words_are_many_readable_and_some_beyond_ascii() -> None:
    words = [word_of(1_000 + index) for index in range(NUM_WORDS)]
    assert len(set(words)) > 4_000
    assert all(word.rstrip()[:1].isprintable() and word[-1].isspace() for word in words)
    assert 20 < sum(not word.isascii() for word in words) < 200


def test_user_text_never_becomes_a_role_an_end_or_an_answer_token() -> None:
    text = "<|im_start|> system\x00 0 1 2 3 4 </s> naïve 🙂 \ud800"
    prompt = FakeTokenizer().encode_chat([Turn(role="user", text=text)], 100, 10)
    assert prompt.tokens[0] == 2
    assert prompt.tokens[-2:] == (4, 3)
    assert all(token >= 10_000 for token in prompt.tokens[1:-2])


def test_the_oldest_turns_are_cut_and_the_system_text_is_kept() -> None:
    turns = [
        Turn(role="system", text="be kind"),
        *[Turn(role="user" if index % 2 == 0 else "assistant", text=f"turn {index}") for index in range(7)],
    ]
    whole = FakeTokenizer().encode_chat(turns, 1_000, 10)
    cut = FakeTokenizer().encode_chat(turns, 30, 10)
    last_two = FakeTokenizer().encode_chat([turns[0], *turns[-2:]], 1_000, 10)
    assert whole.dropped_turns == 0
    assert (cut.dropped_turns, len(cut.tokens) <= 20) == (4, True)
    assert cut.tokens[-len(last_two.tokens) + 4 :] == last_two.tokens[4:]
    assert cut.tokens[:4] == whole.tokens[:4]


def test_a_message_too_long_by_itself_is_refused() -> None:
    with pytest.raises(RequestRejected, match="Shorten"):
        FakeTokenizer().encode_chat([Turn(role="user", text="word " * 50)], 40, 10)


@pytest.mark.parametrize("stop", [(), (" ",), ("a b", "e"), ("ab", "aba"), ("zzz",), ("naïve",)])
def test_text_is_the_words_up_to_the_first_stop_string(stop: tuple[str, ...]) -> None:
    tokens = [1_000 + index * 37 % NUM_WORDS for index in range(100)]
    whole = "".join(map(word_of, tokens))
    stream, text = FakeTokenizer().text_stream(stop), ""
    for token in tokens:
        piece = stream.push(token)
        text += piece.text
        if piece.is_stopped:
            break
    else:
        text += stream.flush()
    assert text == whole[: min([at for at in map(whole.find, stop) if at >= 0], default=len(whole))]


def test_a_stream_that_has_seen_a_prefix_goes_on_where_it_stopped() -> None:
    tokens = [1_000 + index * 37 % NUM_WORDS for index in range(40)]
    for cut in range(0, 40, 7):
        stream, resumed = FakeTokenizer().text_stream(("ra zi",)), None
        before = "".join(stream.push(token).text for token in tokens[:cut])
        resumed = FakeTokenizer().text_stream(("ra zi",), tuple(tokens[:cut]))
        after = [(stream.push(token), resumed.push(token)) for token in tokens[cut:]]
        assert all(one == other for one, other in after)
        assert "".join(map(word_of, tokens)).startswith(before)
