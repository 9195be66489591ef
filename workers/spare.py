"""Import all a worker needs, wait for the word, and become that worker: `python -m workers.spare`.

The word is one line of JSON on standard input: arguments of celery, environment, log. Loads no model and opens no
connection before; ends when nobody is left who could say the word.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from typing import Final

from workers import config

_ALWAYS: Final = (
    "celery.__main__", "celery.bin.celery", "celery.bin.worker", "celery.apps.worker", "celery.concurrency",
    "celery.worker.consumer", "kombu.transport.redis", "workers.app", "workers.pool", "workers.tasks",
    "workers.runtime",
)  # fmt: skip
_FAKE: Final = ("workers.fakes",)
_TORCH: Final = ("workers.model.loader", "workers.model.runner", "workers.text.tokenizer")


def main() -> None:
    """Run until the word comes, then as the worker it names."""
    is_fake = config.read().engine == "fake"
    for name in (*_ALWAYS, *(_FAKE if is_fake else _TORCH)):
        importlib.import_module(name)
    if not is_fake:
        _import_model_class()
    line = sys.stdin.readline()
    if not line:
        return
    word = json.loads(line)
    os.environ.update(word["environment"])
    with open(word["log"], "ab") as log, open(os.devnull, "rb") as nothing:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)
    sys.argv = ["celery", *word["arguments"]]
    importlib.import_module("celery.__main__").main()


def _import_model_class() -> None:
    """Import the architecture's own module, which transformers does only when it builds a model."""
    from transformers import AutoModelForCausalLM

    from workers.model.checkpoint import find_directory, read_config

    try:
        found = read_config(find_directory(config.read().model))
        AutoModelForCausalLM._model_mapping[type(found)]
    except Exception as error:  # a worker says properly what is wrong with it
        logging.getLogger(__name__).warning("the model's class is imported later: %r", error)


if __name__ == "__main__":
    main()
