"""Small tokenizers of the kinds that models have, trained here, each with a chat template."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from workers.text.tokenizer import ChatTokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gptq"
DEMO = Path(__file__).parents[3] / "workers" / "demo_model" / "weights"
CORPUS = [
    "Hello there, how are you today? I am fine, thank you; and you?",
    "The quick brown fox jumps over the lazy dog. <b>bold</b> [INST] {x} | y_z = 10 / 3 \\ ok",
    "Straße, naïve café, 你好世界, привет мир, 😀🎉👩‍👩‍👧 emoji\n\nnew\tparagraph  two  spaces",
    "system user assistant end start turn think im_start im_end tool_call unk s pad eot_id",
    " ".join(chr(code) for code in range(33, 127)),
] * 3
SPLIT = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Looks at texts, trims them, and drops old reasoning, as Qwen3's does.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% else %}{% set c = m.content | trim %}{% endif %}{% if c.startswith('<tool_response>') %}{{ '<tool_call>' }}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# No system turn, and users and assistants must take turns.
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class Made:
    tokenizer: Tokenizer
    settings: dict[str, str]
    template: str
    keeps_edges: bool = True  # the template trims nothing, so transformers' own encoding can be compared


def byte_level(specials: list[str], others: list[str], template: str, *, ignore_merges: bool = False) -> Made:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in others])
    return Made(tokenizer, {"bos_token": specials[0], "eos_token": specials[-1]}, template, template is CHATML)


def sentencepiece_like(specials: list[str], others: list[str], template: str, *, prefix: bool) -> Made:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.train_from_iterator([line for line in CORPUS if line.isascii()], trainers.BpeTrainer(
        vocab_size=520, special_tokens=["<unk>", *specials, *bytes_], show_progress=False))  # fmt: skip
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [item for item in data["added_tokens"] if item["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in others])
    settings = {"bos_token": specials[0], "eos_token": specials[-1], "unk_token": "<unk>"}
    return Made(tokenizer, settings, template, keeps_edges=template is STRICT)


def unigram() -> Made:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    specials = ["<unk>", "<s>", "</s>", "<|u|>"]
    trainer = trainers.UnigramTrainer(vocab_size=320, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = "{% for m in messages %}<|u|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    return Made(tokenizer, {"eos_token": "</s>"}, template)


@cache
def cast() -> dict[str, Made]:
    return {
        "qwen": byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"], CHATML),
        "qwen thinking": byte_level(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>", "<tool_call>"], THINKING
        ),
        "llama 3": byte_level(
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            [],
            LLAMA3,
            ignore_merges=True,
        ),
        "llama 2": sentencepiece_like(["<s>", "</s>"], [], STRICT, prefix=True),
        "gemma": sentencepiece_like(
            ["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"], ["\n\n", "<table>"], GEMMA, prefix=False
        ),
        "unigram": unigram(),
    }


def directories(tmp: Path) -> dict[str, Path]:
    """Write the cast; add the tokenizers that the repository holds."""
    found = {}
    for name, made in cast().items():
        directory = tmp / name.replace(" ", "-")
        directory.mkdir()
        made.tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps(made.settings))
        (directory / "chat_template.jinja").write_text(made.template)
        found[name] = directory
    found["gptq fixture"] = FIXTURES / "llama-act"
    if (DEMO / "tokenizer.json").is_file():
        found["demo model"] = DEMO
    return found


def load_all(tmp: Path) -> dict[str, ChatTokenizer]:
    return {name: ChatTokenizer.load(path) for name, path in directories(tmp).items()}
