"""Layers packed for MKL or oneDNN compute what the plain ones do, all over a model and from any number of threads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.bench.models import random_llama
from workers.model.prepacked import PrepackedLinear, best_library, is_possible, prepack, prepack_all

pytestmark = pytest.mark.needs("torch", "mkl")


@pytest.fixture
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [(1, 2), (2, 1)])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (33,), (300,), (2, 3), ()])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("library", ["mkl", "onednn"])
def test_a_packed_layer_is_the_plain_one(
    shape: tuple[int, ...], threads: tuple[int, int], has_bias: bool, library: str
) -> None:
    torch.manual_seed(1)
    torch.set_num_threads(threads[0])
    plain = nn.Linear(96, 160, bias=has_bias).requires_grad_(False)
    assert isinstance(prepack(plain), PrepackedLinear)
    packed = PrepackedLinear(plain.weight.data, plain.bias, library=library)
    torch.set_num_threads(threads[1])
    x = torch.randn(*shape, 96)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
    strided = torch.randn(*shape, 192)[..., ::2]
    torch.testing.assert_close(packed(strided), plain(strided), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD"])
def test_what_is_not_intels_takes_onednn(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: f"vendor_id\t: {vendor}\n")
    best_library.cache_clear()
    try:
        assert best_library() == ("mkl" if vendor == "GenuineIntel" else "onednn")
    finally:
        best_library.cache_clear()


def test_nothing_else_is_packed() -> None:
    assert not is_possible(torch.zeros(4, 4, dtype=torch.float64))
    assert not is_possible(torch.zeros(4, 4, dtype=torch.bfloat16))
    assert not is_possible(torch.zeros(4, 4, device="meta"))

    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    model = nn.ModuleDict({"odd": Odd(4, 4), "wide": nn.Linear(4, 4, dtype=torch.float64)})
    assert prepack_all(model) == 0


def test_a_model_keeps_its_logits() -> None:
    model = random_llama(layers=2, width=128)
    tokens = torch.tensor([[1, 5, 9, 2]])
    with torch.inference_mode():
        before = model(input_ids=tokens, use_cache=False).logits
        num_packed = prepack_all(model)
        after = model(input_ids=tokens, use_cache=False).logits
        again = copy.deepcopy(model)(input_ids=tokens, use_cache=False).logits
    assert num_packed == 7 * model.config.num_hidden_layers + 1
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert torch.equal(again, after)


def test_one_layer_in_two_places_stays_one() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"first": shared, "second": shared})
    assert prepack_all(model) == 1
    assert model["first"] is model["second"]
