"""Answers come as text, piece by piece, and lose nothing on the way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.unit.text import cast
from workers.text.detokenizer import Detokenizer, decoder_factory
from workers.text.stops import StopFinder
from workers.text.tokenizer import ChatTokenizer
from workers.text.vocabulary import Vocabulary

NAMES = [*cast.cast(), "gptq fixture", *(["demo model"] if (cast.DEMO / "tokenizer.json").is_file() else [])]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cast.directories(tmp_path_factory.mktemp("tokenizers"))


def random_tokens(chance: random.Random, vocabulary: Vocabulary) -> list[int]:
    size = vocabulary.tokenizer.get_vocab_size()
    text = "".join(
        chance.choice(["Hello ", " you", "é", "😀", "你好", "\n", "  ", "x"]) for _ in range(chance.randint(0, 8))
    )
    sound = vocabulary.encode_plain(text, is_first=True)
    noise = [chance.randrange(size + 5) for _ in range(chance.randint(0, 12))]
    # Byte tokens are few among all, so ask for them.
    names = [f"<0x{chance.randrange(256):02X}>" for _ in range(6)]
    single = [token for token in map(vocabulary.tokenizer.token_to_id, names) if token is not None]
    mixed = [*sound, *noise, *single, *sound]
    if chance.random() < 0.5:
        chance.shuffle(mixed)
    return mixed


@pytest.mark.parametrize("name", NAMES)
def test_pieces_joined_are_the_whole_decoded_at_once(name: str, paths: dict[str, Path]) -> None:
    vocabulary, tokenizer = Vocabulary.load(paths[name]), ChatTokenizer.load(paths[name])
    chance = random.Random(3)
    for _ in range(300):
        tokens = random_tokens(chance, vocabulary)
        stream = tokenizer.text_stream()
        text = "".join(stream.push(token).text for token in tokens) + stream.flush()
        assert text == vocabulary.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_answer_resumed_after_any_token_goes_on_with_the_same_text(name: str, paths: dict[str, Path]) -> None:
    vocabulary, tokenizer = Vocabulary.load(paths[name]), ChatTokenizer.load(paths[name])
    chance = random.Random(4)
    for _ in range(20):
        tokens, stop = random_tokens(chance, vocabulary), ("you x", "llo")
        stream = tokenizer.text_stream(stop)
        pieces = [stream.push(token) for token in tokens]
        rest = stream.flush()
        for at in range(len(tokens)):
            again = tokenizer.text_stream(stop, tuple(tokens[:at]))
            assert [again.push(token) for token in tokens[at:]] == pieces[at:]
            assert again.flush() == rest


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_the_tokens_joined_are_the_text(name: str, paths: dict[str, Path]) -> None:
    vocabulary, tokenizer = Vocabulary.load(paths[name]), ChatTokenizer.load(paths[name])
    tokens = vocabulary.encode_plain("Hello you, née x", is_first=True)
    stream = tokenizer.text_stream()
    joined = b"".join(stream.bytes_of(token) for token in tokens).decode()  # type: ignore[attr-defined]
    # A text's first space is the only thing that a token by itself cannot know.
    assert joined.lstrip() == vocabulary.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()
    assert stream.flush() == ""


def test_half_an_emoji_is_never_shown(paths: dict[str, Path]) -> None:
    tokenizer, vocabulary = ChatTokenizer.load(paths["qwen"]), Vocabulary.load(paths["qwen"])
    tokens = vocabulary.encode_plain("ok 👩‍👩‍👧 fine")
    stream = tokenizer.text_stream()
    pieces = [stream.push(token).text for token in tokens]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "ok 👩‍👩‍👧 fine"
    cut = tokenizer.text_stream()
    for token in vocabulary.encode_plain("😀")[:-1]:
        assert cut.push(token).text == ""
    assert cut.flush() == "\ufffd"


def test_unknown_kind_of_decoder_still_loses_nothing(paths: dict[str, Path]) -> None:
    vocab = {"[UNK]": 0, "hel": 1, "##lo": 2, "wor": 3, "##ld": 4, "!": 5}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    vocabulary = Vocabulary(tokenizer, {})
    stream = Detokenizer(decoder_factory(vocabulary)())
    tokens = [1, 2, 3, 4, 5] * 40
    text = "".join(stream.push(token).text for token in tokens) + stream.flush()
    assert text == tokenizer.decode(tokens)


def test_special_tokens_do_not_show_and_markers_of_thought_do(paths: dict[str, Path]) -> None:
    tokenizer, vocabulary = ChatTokenizer.load(paths["qwen"]), Vocabulary.load(paths["qwen"])
    ids = vocabulary.tokenizer.token_to_id
    tokens = [ids("<think>"), *vocabulary.encode_plain("hm"), ids("</think>"), ids("<|im_end|>"), ids("<|endoftext|>")]
    assert tokenizer.decode([token for token in tokens if token is not None]) == "<think>hm</think>"


def first_complete(text: str, stops: list[str]) -> str | None:
    """The definition, at leisure: the shortest beginning that ends with a stop string, without the longest such."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return None


@example(text="aaab", stops=["aab"], cuts=[1])
@example(text="ababac", stops=["abac", "c"], cuts=[2])
@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", max_size=5), max_size=4),
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=40),
)
def test_answer_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder = StopFinder(stops)
    told, at = "", 0
    for size in cuts * 40:
        told += finder.push(text[at : at + size])
        at += size
        if finder.is_stopped or at >= len(text):
            break
    told += finder.flush()
    expected = first_complete(text, stops)
    assert finder.is_stopped == (expected is not None)
    assert told == (text if expected is None else expected)


def test_what_cannot_become_a_stop_string_is_told_at_once() -> None:
    finder = StopFinder(("END",))
    assert [finder.push(piece) for piece in ("he", "E", "N", "x", "EEN")] == ["he", "", "", "ENx", "E"]
    assert finder.push("D more") == ""
    assert finder.is_stopped
    assert finder.push("more") == finder.flush() == ""


def test_long_stop_strings_cost_no_more_per_character() -> None:
    finder = StopFinder(["a" * 5000 + "b"] * 16)
    assert len(finder.push("a" * 100_000)) == 95_000
    assert len(finder.flush()) == 5000
