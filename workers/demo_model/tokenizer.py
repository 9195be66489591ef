"""Make the demo model's tokenizer: byte-level BPE, so any Unicode comes back as it went in.

python -m workers.demo_model.tokenizer DIRECTORY
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workers.demo_model import corpus
from workers.demo_model.conversations import ConversationSampler

VOCABULARY = 4352
CONTEXT = 1024
END, SYSTEM, USER, ASSISTANT, PAD = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
# The first token of an answer names it as a whole; it is never shown, and history does not have it.
PLANS = [f"<|answer-{number}|>" for number in range(len(corpus.answers()))]
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('Unknown role: ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make() -> PreTrainedTokenizerFast:
    """Train the vocabulary on answers and on sampled questions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, SYSTEM, USER, ASSISTANT, PAD, *PLANS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def _texts() -> Iterator[str]:
    for topic in corpus.load().topics.values():
        for text in (topic.answer, topic.more, topic.why):
            yield from [text] * 12
    sampler = ConversationSampler(random.Random(1))
    for _ in range(4000):
        sampler.start()
        for _ in range(10):
            yield sampler.turn()[0]


def main() -> None:
    """Write tokenizer.json, tokenizer_config.json and the template."""
    make().save_pretrained(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
