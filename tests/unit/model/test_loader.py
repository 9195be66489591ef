"""Checkpoints load whole and exact, or say what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.unit.model import tiny
from workers.errors import ModelLoadError
from workers.model.device import choose_device
from workers.model.gptq_int4 import Int4Linear
from workers.model.loader import Backend, load_model

GPTQ = Path(__file__).parents[2] / "fixtures" / "gptq"
NAMES = sorted(path.parent.name for path in GPTQ.glob("*/config.json"))


def logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Run without the paged cache, as any transformers model."""
    model.config._attn_implementation = "eager"
    with torch.inference_mode():
        return model(input_ids).logits


@pytest.mark.parametrize("backend", ["dense", "packed", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_what_gptqmodel_wrote_loads_to_the_logits_of_its_own_dequantisation(name: str, backend: Backend) -> None:
    reference = load_file(GPTQ / name / "reference.safetensors")
    loaded = load_model(GPTQ / name, device="cpu", backend=backend)
    assert loaded.num_quantised == 14
    assert loaded.eos_tokens == {0}
    torch.testing.assert_close(logits(loaded.model, reference["input_ids"]), reference["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_int4_kernel_is_near_the_reference(name: str) -> None:
    reference = load_file(GPTQ / name / "reference.safetensors")
    loaded = load_model(GPTQ / name, device="cpu", backend="int4")
    assert any(isinstance(module, Int4Linear) for module in loaded.model.modules())
    found, expected = logits(loaded.model, reference["input_ids"]), reference["logits"]
    # bfloat16 inputs and scales, layer after layer.
    assert float((found - expected).abs().mean()) < 0.02 * float(expected.abs().mean())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("dense"), "Qwen2")


@pytest.fixture
def broken(dense: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dense, tmp_path / "model")


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    return shutil.copytree(GPTQ / "llama-act", tmp_path / "model")


def change_json(path: Path, **fields: Any) -> None:
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def change_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)


def refusal(source: Path | str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(source, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma2"])
def test_plain_model_equals_from_pretrained_tied_or_not(name: str, tmp_path: Path) -> None:
    ids = torch.randint(2, tiny.VOCABULARY, (2, 20))
    for tied in (False, True):
        directory = tiny.save_tiny(tmp_path / str(tied), name, tie_word_embeddings=tied)
        peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        loaded = load_model(directory, device="cpu")
        assert torch.equal(logits(loaded.model, ids), logits(peer, ids))
        assert loaded.num_quantised == 0


def test_sharded_model_loads_like_a_single_file(dense: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(dense)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.randint(2, tiny.VOCABULARY, (2, 20))
    assert torch.equal(logits(load_model(tmp_path, "cpu").model, ids), logits(load_model(dense, "cpu").model, ids))
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.unlink()
    assert shard.name in refusal(tmp_path)


def test_second_format_and_settings_in_a_file_of_their_own_load(quantised: Path) -> None:
    reference = load_file(quantised / "reference.safetensors")
    (quantised / "reference.safetensors").unlink()
    tensors = load_file(quantised / "model.safetensors")
    ones = sum(1 << shift for shift in range(0, 32, 4))
    save_file(
        {name: tensor + ones if name.endswith("qzeros") else tensor for name, tensor in tensors.items()},
        quantised / "gptq_model-4bit-32g.safetensors",
    )
    (quantised / "model.safetensors").unlink()
    settings = json.loads((quantised / "config.json").read_text())["quantization_config"]
    change_json(quantised / "config.json", quantization_config=None)
    (quantised / "quantize_config.json").write_text(json.dumps(settings | {"checkpoint_format": "gptq_v2"}))
    got = logits(load_model(quantised, device="cpu").model, reference["input_ids"])
    torch.testing.assert_close(got, reference["logits"], rtol=0, atol=2e-5)


def test_missing_things_say_what_to_do(broken: Path, tmp_path: Path) -> None:
    assert "no directory" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(broken / "config.json")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    (broken / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(broken)
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pickle" in refusal(broken)


def test_hub_id_without_a_way_to_the_hub_says_so() -> None:
    said = refusal("nobody/no-such-model")
    assert "HF_HUB_OFFLINE" in said
    assert "neither" in refusal("no*body/x y")


def test_damaged_weights_are_refused(broken: Path) -> None:
    path = broken / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a tensor file at all", b"\xff" * 100):
        path.write_bytes(damaged)
        assert "damaged" in refusal(broken)
    path.write_bytes(whole)
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    assert "outside" in refusal(broken)
    (broken / "model.safetensors.index.json").write_text("[")
    assert "JSON" in refusal(broken)


def test_tensors_that_do_not_fit_the_config_are_named(broken: Path) -> None:
    change_tensors(broken, **{"model.norm.weight": None})
    assert "model.norm.weight" in refusal(broken)
    change_tensors(broken, **{"model.norm.weight": torch.ones(3)})
    assert "(3,)" in refusal(broken)
    change_tensors(broken, **{"model.norm.weight": torch.ones(64), "model.odd.weight": torch.ones(3)})
    assert "model.odd.weight" in refusal(broken)
    change_tensors(broken, **{"model.odd.weight": None, "model.norm.weight": torch.ones(64, dtype=torch.int32)})
    assert "int32" in refusal(broken)


def test_config_that_asks_for_code_or_is_no_chat_model_is_refused(broken: Path) -> None:
    path = broken / "config.json"
    whole = path.read_text()
    change_json(path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert "auto_map" in refusal(broken)
    path.write_text(whole)
    change_json(path, model_type="no_such_model")
    assert "config.json" in refusal(broken)
    path.write_text(json.dumps({"model_type": "clip"}))
    assert "clip" in refusal(broken)
    for damaged in ("", "[]", '{"model_type": "qwen2"', '{"model_type": "qwen2", "hidden_size": "many"}'):
        path.write_text(damaged)
        assert "config.json" in refusal(broken)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 3}, "4 and 8"),
        ({"bits": 2}, "4 and 8"),
        ({"quant_method": "awq"}, "awq"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"group_size": 64}, "shape"),
        ({"bits": None}, "bits"),
        ({"bits": "four"}, "bits"),
    ],
)
def test_quantisation_of_another_kind_is_refused(quantised: Path, settings: dict[str, Any], words: str) -> None:
    raw = json.loads((quantised / "config.json").read_text())["quantization_config"]
    changed = {key: value for key, value in (raw | settings).items() if value is not None}
    change_json(quantised / "config.json", quantization_config=changed)
    assert words in refusal(quantised)


def test_quantised_tensors_that_are_missing_or_strange_are_named(quantised: Path) -> None:
    layer = "model.layers.0.mlp.up_proj"
    tensors = load_file(quantised / "model.safetensors")
    change_tensors(quantised, **{f"{layer}.scales": None})
    assert f"scales of {layer}" in refusal(quantised)
    change_tensors(quantised, **{f"{layer}.scales": tensors[f"{layer}.scales"], f"{layer}.bias": torch.ones(256)})
    assert "bias" in refusal(quantised)
    change_tensors(quantised, **{f"{layer}.bias": torch.zeros(256)})
    load_model(quantised, device="cpu")  # A bias of zeros is how some writers say there is none.
    change_tensors(quantised, **{"model.nowhere.qweight": torch.zeros(1, dtype=torch.int32)})
    assert "model.nowhere" in refusal(quantised)
    change_json(quantised / "config.json", quantization_config=None)
    (quantised / "quantize_config.json").unlink()
    assert "quantize_config.json" in refusal(quantised)


def test_devices_are_named_plainly() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("tpu", "cuda:99", "", "mps"):
        with pytest.raises(ModelLoadError, match="CHAT_DEVICE"):
            choose_device(name)
