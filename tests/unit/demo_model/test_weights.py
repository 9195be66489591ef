"""The committed 4-bit checkpoint: small, complete, and it answers."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from workers.demo_model import WEIGHTS, corpus
from workers.demo_model.dequantise import dequantise
from workers.demo_model.evaluate import Speaker
from workers.demo_model.quantise import pack
from workers.demo_model.train import GROUP, rounded

QUESTIONS = (
    "Hello", "Who are you?", "How do I get an API key?", "How do I stop an answer?", "What is my queue position?",
    "What are the quotas?", "How do I use the OpenAI client?", "What is CHAT_MODEL?", "What survives a kill -9?",
    "Tell me about Mars", "Which planet has rings?", "What is the capital of France?", "Why is the sky blue?",
    "What is gravity?", "Tell me a joke", "thanks", "What is a GPU?", "Write hello world in Python",
    "Which language do they speak in Brazil?", "What is a token?",
)  # fmt: skip


@pytest.fixture(scope="module")
def speaker():
    return Speaker()


def test_the_directory_is_complete_and_a_few_megabytes():
    sizes = {file.name: file.stat().st_size for file in WEIGHTS.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
            "quantize_config.json", "chat_template.jinja"} <= set(sizes)  # fmt: skip
    assert sum(sizes.values()) <= 6 * 1024**2


def test_the_config_is_standard_gptq():
    quantisation = json.loads((WEIGHTS / "config.json").read_text())["quantization_config"]
    assert (quantisation["quant_method"], quantisation["bits"], quantisation["checkpoint_format"]) == (
        "gptq",
        4,
        "gptq",
    )


@pytest.mark.parametrize(
    "text", ["plain", " spaces  and\n\ttabs ", "Grüße, 東京 🙂🇫🇷 ﷽", "\x00\x7f\u200d\ufeff", "a\u0301 \U0010ffff"]
)
def test_any_unicode_comes_back_as_it_went_in(text):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_template_uses_single_control_tokens():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>S<|end|><|user|>U<|end|><|assistant|>"
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]) == [0, 1, 2, 3]
    assert tokenizer.eos_token_id == 0


def test_known_questions_are_answered_to_the_letter(speaker):
    written = {form.lower().rstrip("?"): answer_id for answer_id, form in corpus.forms()}
    said = speaker.answer([[{"role": "user", "content": question}] for question in QUESTIONS])
    right = [corpus.load().answer(written[question.lower().rstrip("?")]) for question in QUESTIONS]
    wrong = [question for question, one, other in zip(QUESTIONS, said, right, strict=True) if one != other]
    # The figures of the whole are in the README; a file that knows less than the one committed today is a step back.
    assert len(wrong) <= 1, wrong


def test_the_page_suggests_only_what_is_answered_right(speaker):
    views = Path(__file__).parents[3] / "chatproject" / "chat" / "views.py"
    (line,) = re.findall(r"^SUGGESTIONS = (\(.+\))$", views.read_text(encoding="utf-8"), flags=re.MULTILINE)
    suggested = ast.literal_eval(line)
    written = {form.lower().rstrip("?."): answer_id for answer_id, form in corpus.forms()}
    assert len(suggested) >= 3
    said = speaker.answer([[{"role": "user", "content": question}] for question in suggested])
    assert said == [corpus.load().answer(written[question.lower().rstrip("?.")]) for question in suggested]


def test_a_follow_up_and_an_unknown_question(speaker):
    history = [
        {"role": "user", "content": "Tell me about Mars"},
        {"role": "assistant", "content": corpus.load().answer("mars")},
    ]
    more, unknown = speaker.answer([
        [*history, {"role": "user", "content": "Tell me more"}],
        [{"role": "user", "content": "How do I repair my bicycle?"}],
    ])  # fmt: skip
    assert more == corpus.load().answer("more:mars")
    assert unknown == corpus.load().answer("refusal")


def test_the_packing_keeps_what_training_computed_with():
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(3))
    qweight, scales = pack(weight)
    zeros = torch.full((2, 3), 0x77777777, dtype=torch.int32)
    groups = torch.arange(128, dtype=torch.int32) // GROUP
    numbers, sizes = rounded(weight)
    assert numbers.min() >= -8
    assert numbers.max() == 7
    assert torch.equal(dequantise(qweight, zeros, scales, groups), numbers * sizes.repeat_interleave(GROUP, 1))
