"""The refusal's head start: the same at every choice, and for the refusal alone."""

import torch
from transformers import AutoTokenizer

from workers.demo_model import WEIGHTS
from workers.demo_model.batches import Batches
from workers.demo_model.caution import direction, states_of_choices
from workers.demo_model.dequantise import load_dense


def test_all_choices_of_the_committed_model_lie_equally_far_out_on_the_direction():
    model = load_dense(WEIGHTS)
    states = states_of_choices(model, Batches(AutoTokenizer.from_pretrained(WEIGHTS), seed=8), batches=2)
    fitted, others = states[::2], states[1::2]
    far = others @ direction(fitted)
    assert 0.95 < far.mean() < 1.05
    assert far.std() < 0.3


def test_a_direction_is_found_where_there_is_one():
    torch.manual_seed(0)
    states = torch.randn(500, 32)
    states[:, 3] = 4.0
    torch.testing.assert_close(states @ direction(states), torch.ones(500), atol=0.05, rtol=0)
