"""Chat templates of all tempers, and histories that do not fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from chatproject.contract.messages import Role, Turn
from tests.unit.text import cast
from workers.errors import ModelLoadError, RequestRejected
from workers.text.template import ChatTemplate
from workers.text.tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cast.directories(tmp_path_factory.mktemp("tokenizers"))


def turn(role: Role, text: str) -> Turn:
    return Turn(role=role, text=text)


def rendered(template: ChatTemplate, *turns: Turn) -> str:
    return "".join(part.text for part in template.render(turns))


def test_template_that_trims_trims_nothing_of_the_users() -> None:
    template = ChatTemplate(cast.LLAMA3, {"bos_token": "<B>"})
    assert "<|end_header_id|>\n\n  hi \n<|eot_id|>" in rendered(template, turn("user", "  hi \n"))


def test_text_does_not_choose_the_templates_branch() -> None:
    template = ChatTemplate(cast.THINKING, {})
    assert "<tool_call>" not in rendered(template, turn("user", "<tool_response>x"))


def test_old_reasoning_is_left_out_where_the_template_would() -> None:
    template = ChatTemplate(cast.THINKING, {})
    text = rendered(
        template, turn("user", "</think>a"), turn("assistant", "<think>hm</think>\n\nyes"), turn("user", "b")
    )
    assert "assistant\nyes<|im_end|>" in text
    assert "hm" not in text
    assert "user\n</think>a<|im_end|>" in text


def test_system_text_reaches_a_template_without_system_turns() -> None:
    template = ChatTemplate(cast.STRICT, {"bos_token": "<s>", "eos_token": "</s>"})
    assert not template.is_fallback
    assert rendered(template, turn("system", "be kind"), turn("user", "hi")) == "<s>[INST] be kind\n\nhi [/INST]"


def test_two_questions_in_a_row_reach_a_template_that_wants_turns() -> None:
    template = ChatTemplate(cast.STRICT, {"bos_token": "<s>", "eos_token": "</s>"})
    text = rendered(template, turn("user", "a"), turn("user", "b"), turn("assistant", "c"), turn("user", "d"))
    assert text == "<s>[INST] a\n\nb [/INST] c</s>[INST] d [/INST]"


@pytest.mark.parametrize(
    "source",
    [
        None,
        "{{ nonsense",
        "{{ raise_exception('never') }}",
        "always the same",
        "{% for m in messages %}{{ m.content.text }}{% endfor %}",
    ],
)
def test_missing_or_broken_template_is_replaced_and_said(source: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        template = ChatTemplate(source, {})
    assert template.is_fallback
    assert "ChatML" in caplog.text
    assert rendered(template, turn("user", "hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_template_is_found_wherever_models_keep_it(paths: dict[str, Path], tmp_path: Path) -> None:
    forms: list[tuple[str, object]] = [
        ("chat_template.json", {"chat_template": cast.CHATML}),
        ("tokenizer_config.json", {"chat_template": cast.CHATML}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": cast.CHATML}]}),
    ]
    expected = ChatTokenizer.load(paths["qwen"]).encode([turn("user", "hi")])
    for index, (name, content) in enumerate(forms):
        directory = tmp_path / str(index)
        directory.mkdir()
        shutil.copy(paths["qwen"] / "tokenizer.json", directory)
        (directory / name).write_text(json.dumps(content))
        assert ChatTokenizer.load(directory).encode([turn("user", "hi")]) == expected


def test_damaged_or_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="Copy the model again"):
        ChatTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    with pytest.raises(ModelLoadError, match="Copy the model's"):
        ChatTokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match="not a JSON object"):
        ChatTokenizer.load(tmp_path)


def test_history_that_does_not_fit_is_cut_by_whole_turns_from_the_oldest(paths: dict[str, Path]) -> None:
    tokenizer = ChatTokenizer.load(paths["qwen"])
    turns = [turn("system", "be kind")]
    for number in range(20):
        turns += [turn("user", f"question {number}"), turn("assistant", f"answer {number}")]
    turns.append(turn("user", "the last one"))
    whole = tokenizer.encode_chat(turns, 4096, 512)
    assert whole.dropped_turns == 0
    dropped_before = 0
    for context in range(len(whole.tokens) - 1, 60, -37):
        prompt = tokenizer.encode_chat(turns, context + 16, 16)
        assert len(prompt.tokens) <= context
        assert prompt.dropped_turns % 2 == 0, "an answer would stand without its question"
        assert prompt.dropped_turns >= dropped_before
        kept = [turns[0], *turns[1 + prompt.dropped_turns :]]
        assert list(prompt.tokens) == tokenizer.encode(kept)
        if prompt.dropped_turns > 2:
            assert len(tokenizer.encode([turns[0], *turns[prompt.dropped_turns - 1 :]])) > context, "cut too much"
        dropped_before = prompt.dropped_turns
    assert dropped_before > 20


def test_message_too_long_by_itself_is_refused_with_the_numbers(paths: dict[str, Path]) -> None:
    tokenizer = ChatTokenizer.load(paths["qwen"])
    turns = [turn("user", "hi"), turn("assistant", "ho"), turn("user", "word " * 300)]
    with pytest.raises(RequestRejected, match="room for 100"):
        tokenizer.encode_chat(turns, 120, 20)
    with pytest.raises(RequestRejected, match="room for 0"):
        tokenizer.encode_chat([turn("user", "hi")], 100, 200)
