"""Quantise a trained model to 4-bit GPTQ: python -m workers.demo_model.quantise DIRECTORY [TARGET]

Needs gptqmodel, in an environment of its own (see README.md); the service itself never imports it. Calibrates on
sampled conversations, the kind of text that the model sees in use.

The 4-bit numbers themselves are those that training computed with (`train.rounded`). gptqmodel makes up for rounding
errors against the float weights, but the float weights are not what was trained: they answer worse than their rounding.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from workers.demo_model import WEIGHTS
from workers.demo_model.batches import Batches, Phase
from workers.demo_model.train import GROUP, rounded
from workers.model import gptq

ROWS, LENGTH = 192, 384
ZERO = 8  # of a symmetric grid; stored as 7 in this version of the format
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def quantise(source: Path, target: Path) -> None:
    """Write the 4-bit checkpoint of ``source`` to ``target``."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # A tool, not a requirement.

    torch.manual_seed(0)
    random.seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    ids = Batches(tokenizer, seed=2).draw(Phase(until=1.0, rows=ROWS, length=LENGTH, short=0.0)).ids
    rows = [row[row != tokenizer.pad_token_id].tolist() for row in ids]
    calibration = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    # No act-order: the groups then stay contiguous, as the rounding in training had them.
    config = QuantizeConfig(bits=4, group_size=GROUP, desc_act=False, sym=True, format="gptq")
    model = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float32)
    model.quantize(calibration, batch_size=8, backend=BACKEND.GPTQ_TORCH)
    target.mkdir(parents=True, exist_ok=True)
    model.save(str(target))
    _store_as_trained(source, target)
    _tidy(source, target)


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> qweight (in / 8, out) int32 and scales (in / GROUP, out), as training rounds the weight."""
    numbers, scales = rounded(weight)  # (out, in), (out, in / GROUP)
    return gptq.pack(numbers.T.contiguous() + ZERO, bits=4, dim=0), scales.T.contiguous()


def _store_as_trained(source: Path, target: Path) -> None:
    trained, stored = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    for name in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        stored[f"{name}.qweight"], stored[f"{name}.scales"] = pack(trained[f"{name}.weight"])
    # What is not quantised was float32 for the calibration; half of that is enough for use.
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})


def _tidy(source: Path, target: Path) -> None:
    for log in target.glob("*.csv"):
        log.unlink()
    # gptqmodel rewrites the tokenizer's settings on its way through, and notes its scratch folder: neither fits here.
    for name in TOKENIZER_FILES:
        (target / name).write_bytes((source / name).read_bytes())
    for name in ("config.json", "quantize_config.json"):
        text = (target / name).read_text().replace('"dtype": "float32"', '"dtype": "float16"')
        text = re.sub(r'\n *"offload_to_disk_path": "[^"]*",?', "", text)
        json.loads(text)
        (target / name).write_text(text)
    generation = {"eos_token_id": 0, "pad_token_id": 4, "do_sample": False, "max_new_tokens": 400}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for file in target.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    quantise(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else WEIGHTS)
