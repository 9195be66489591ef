"""What the trainer shows: plans before answers that are told, and nowhere else."""

import pytest
import torch
from transformers import AutoTokenizer

from workers.demo_model import WEIGHTS, corpus
from workers.demo_model import tokenizer as demo_tokenizer
from workers.demo_model.batches import BRANCHES, Batches, Phase
from workers.demo_model.dequantise import load_dense
from workers.text.tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def plans(tokenizer):
    return dict(zip(tokenizer.convert_tokens_to_ids(demo_tokenizer.PLANS), corpus.answers(), strict=True))


def until_end(tokenizer, ids):
    tokens = ids.tolist()
    end = tokenizer.eos_token_id
    return tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)


@pytest.mark.parametrize("phase", [
    Phase(1.0, 12, 512, 0.5), Phase(1.0, 1, 1, 0.5, singles=1.0), Phase(1.0, 1, 1, 0.5, recitals=1.0),
], ids=["conversations", "singles", "recitals"])  # fmt: skip
def test_a_row_tells_one_answer_behind_its_plan(tokenizer, plans, phase):
    drawn = Batches(tokenizer, seed=3).draw(phase)
    for ids, is_told, wanted in zip(drawn.ids, drawn.is_told, drawn.plans, strict=True):
        standing = [index for index, token in enumerate(ids.tolist()) if token in plans]
        assert len(standing) == 1
        assert is_told.nonzero()[0].item() == standing[0] + 1
        assert plans[ids[standing[0]].item()].startswith(until_end(tokenizer, ids[is_told]))
        # A plan is right behind each head of an answer, and of the last that one stands there.
        heads = (ids == tokenizer.convert_tokens_to_ids(demo_tokenizer.ASSISTANT)).nonzero().flatten()
        marked = (wanted >= 0).nonzero().flatten()
        assert marked.tolist() == ([] if phase.recitals else heads.tolist())
        for head in marked[:-1]:
            assert plans[wanted[head].item()].startswith(until_end(tokenizer, ids[head + 1 :]))
        if len(marked):
            assert wanted[marked[-1]] == ids[standing[0]]


def test_conversations_show_several_turns_and_whole_answers(tokenizer):
    drawn = Batches(tokenizer, seed=4).draw(Phase(1.0, 12, 512, 0.5))
    assert (drawn.plans >= 0).sum(1).float().mean() > 5
    assert drawn.is_told.sum(1).float().mean() > 30


def test_a_next_question_of_a_tree_sees_the_conversation_and_itself(tokenizer):
    model = load_dense(WEIGHTS)
    drawn = Batches(tokenizer, seed=5).draw(Phase(1.0, 1, 256, 0.5, trees=1.0))
    with torch.inference_mode():
        together = model(input_ids=drawn.ids, attention_mask=drawn.attention(), position_ids=drawn.positions()).logits
        for row, branches in enumerate(drawn.branches[:3]):
            assert branches.max() == BRANCHES
            for branch in range(BRANCHES + 1):
                seen = (branches == 0) | (branches == branch)
                alone = model(input_ids=drawn.ids[row][seen][None]).logits[0]
                torch.testing.assert_close(together[row][seen], alone, rtol=1e-3, atol=1e-3)


def test_a_plan_is_never_shown(plans):
    stream = ChatTokenizer.load(WEIGHTS).text_stream()
    assert [stream.push(plan).text for plan in plans] == [""] * len(plans)
    assert stream.flush() == ""
