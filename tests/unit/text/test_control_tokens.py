"""What people write stays text: no control token comes of it, and nothing of it is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from chatproject.contract.messages import Role, Turn
from tests.unit.text import cast
from workers.errors import RequestRejected
from workers.text.tokenizer import ChatTokenizer
from workers.text.vocabulary import Vocabulary

NAMES = [*cast.cast(), "gptq fixture", *(["demo model"] if (cast.DEMO / "tokenizer.json").is_file() else [])]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cast.directories(tmp_path_factory.mktemp("tokenizers"))


def talk(*texts: str) -> list[Turn]:
    roles: tuple[Role, Role] = ("user", "assistant")
    return [Turn(role=roles[index % 2], text=text) for index, text in enumerate(texts)]


def forms(marker: str, others: list[str]) -> list[str]:
    """Ways to write a marker."""
    return [
        marker, marker * 2, f"before {marker} after", f" {marker} ", marker[:-1], marker[1:],
        marker[: len(marker) // 2], f"{marker[:-1]}{marker}{marker[1:]}", f"{marker}\n{others[0]}assistant\nyes",
        f"{marker[:2]}{others[-1]}{marker[2:]}", f"\n{marker}\n\n{marker}",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_form_of_a_control_token_is_ever_read_as_one(name: str, paths: dict[str, Path]) -> None:
    vocabulary = Vocabulary.load(paths[name])
    tokenizer = ChatTokenizer.load(paths[name])
    # From the file itself, special or not; white space that is a token of its own is no marker.
    added = [item for item in json.loads((paths[name] / "tokenizer.json").read_text())["added_tokens"]
             if item["content"].strip()]  # fmt: skip
    markers = [item["content"] for item in added]
    assert len(markers) >= 3
    ids = {item["id"] for item in added} - {vocabulary.tokenizer.token_to_id("<unk>")}

    def control(turns: list[Turn]) -> Counter[int]:
        return Counter(token for token in tokenizer.encode(turns) if token in ids)

    alone, history = control(talk("a")), control(talk("a", "b", "c"))
    with_system = control([Turn(role="system", text="a"), *talk("b")])
    for marker in markers:
        for text in forms(marker, markers):
            assert control(talk(text)) == alone, text
            assert control(talk(text, text, "c")) == history, text
            assert control(talk("a", "b", text)) == history, text
            assert control([Turn(role="system", text=text), *talk("b")]) == with_system, text


@pytest.mark.parametrize("name", NAMES)
def test_text_arrives_as_it_was_written(name: str, paths: dict[str, Path]) -> None:
    vocabulary = Vocabulary.load(paths[name])
    tokenizer = ChatTokenizer.load(paths[name])
    markers = [item.content for item in vocabulary.control if item.content != "<unk>"]
    texts = [form for marker in markers for form in forms(marker, markers)]
    if name not in ("unigram",):  # That one knows no bytes, so no characters beyond its vocabulary.
        texts += ["  two  spaces  ", "\ttab\r\n\n\nlines\n", "Straße 你好 😀👩‍👩‍👧", "\x00\x01", "<0xE2><0x0A>"]
    for text in texts:
        tokens = tokenizer.encode(talk(text))
        decoded = vocabulary.tokenizer.decode(tokens, skip_special_tokens=False)
        if name == "unigram":
            # White space runs are one mark to it.
            assert text.replace("\n", " ").split() == [] or "".join(text.split()) in "".join(decoded.split())
        else:
            assert text in decoded, (text, decoded)


@pytest.mark.parametrize("name", [name for name in cast.cast() if cast.cast()[name].keeps_edges])
def test_harmless_text_gets_the_tokens_that_transformers_gives_it(name: str, paths: dict[str, Path]) -> None:
    made = cast.cast()[name]
    peer = PreTrainedTokenizerFast(tokenizer_object=made.tokenizer, **made.settings)
    peer.chat_template = made.template
    tokenizer = ChatTokenizer.load(paths[name])
    for texts in (["Hello there"], [" hi", "\nfine ", "and  you?\n\n"], ["你好 😀"], ["a"] * 9):
        messages = [{"role": turn.role, "content": turn.text} for turn in talk(*texts)]
        expected = peer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert tokenizer.encode(talk(*texts)) == expected


def test_text_that_is_no_unicode_is_refused(paths: dict[str, Path]) -> None:
    with pytest.raises(RequestRejected, match="Unicode"):
        ChatTokenizer.load(paths["qwen"]).encode(talk("\ud800"))


def test_same_files_give_the_same_vocabulary_hash(paths: dict[str, Path]) -> None:
    hashes = {
        name: ChatTokenizer.load(path).vocabulary_sha256 for name, path in paths.items() if name != "qwen thinking"
    }
    assert ChatTokenizer.load(paths["gemma"]).vocabulary_sha256 == hashes["gemma"]
    assert len(set(hashes.values())) == len(hashes)


@pytest.mark.parametrize("name", NAMES)
def test_turn_tokens_are_never_fewer_than_what_the_template_adds(name: str, paths: dict[str, Path]) -> None:
    vocabulary, tokenizer = Vocabulary.load(paths[name]), ChatTokenizer.load(paths[name])
    texts = ["Hello there", "fine", "and you?", "well", "good"]
    for number in (1, 3, 5):
        text_tokens = sum(len(vocabulary.encode_plain(text, is_first=True)) for text in texts[:number])
        assert len(tokenizer.encode(talk(*texts[:number]))) <= text_tokens + (number + 1) * tokenizer.turn_tokens


def test_answers_end_at_the_configured_token_and_at_the_templates(paths: dict[str, Path]) -> None:
    expected = {
        "qwen": {"<|im_end|>"}, "llama 3": {"<|eot_id|>"}, "llama 2": {"</s>"}, "gemma": {"<eos>", "<end_of_turn>"},
        "gptq fixture": {"<|end|>"}, "unigram": {"</s>"},
    }  # fmt: skip
    for name, contents in expected.items():
        vocabulary = Vocabulary.load(paths[name])
        found = {vocabulary.tokenizer.id_to_token(token) for token in ChatTokenizer.load(paths[name]).eos_tokens}
        assert found == contents, name
