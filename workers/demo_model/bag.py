"""Where training begins: embeddings that tell questions apart as a bag of words, and a network that averages them.

Knows token ids and numbers of answers; nothing of conversations or of the rest of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

Prompt = tuple[list[int], int]  # token ids of a question in its template, the number of its answer

STEPS, ROWS, RATE = 6000, 512, 5e-3
LEFT_OUT = 0.1  # share of the tokens of a prompt, so that no single word decides
SIZE = 0.3  # root mean square of an embedding, as large as the network's own updates are used to


def fit(prompts: Sequence[Prompt], vocabulary: int, width: int, answers: int) -> tuple[Tensor, Tensor]:
    """Return embeddings (vocabulary, width), and what names an answer by a prompt's mean embedding (answers, width)."""
    embeddings = nn.Parameter(torch.randn(vocabulary, width) * SIZE)
    namer = nn.Linear(width, answers, bias=False)
    optimizer = torch.optim.Adam([embeddings, namer.weight], lr=RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (STEPS - step) / (0.6 * STEPS))
        chosen = [prompts[index] for index in torch.randint(len(prompts), (ROWS,)).tolist()]
        logits = namer(_normal(_means(_normal(embeddings), [ids for ids, _ in chosen])))
        loss = nn.functional.cross_entropy(logits, torch.tensor([number for _, number in chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 249:
            print(f"bag of words, step {step + 1}: loss {loss.item():.3f}", flush=True)
    return _normal(embeddings.detach()) * SIZE, namer.weight.detach()


@torch.no_grad()
def begin(model: LlamaForCausalLM, embeddings: Tensor, namer: Tensor, *, head: int, plans: Sequence[int]) -> None:
    """Make ``model`` the bag of words: its first layer averages what came before, and the others add nothing yet.

    ``head`` is the token before an answer: next to nothing of its own is added to the average there. ``plans`` are the
    tokens that name the answers.
    """
    model.model.embed_tokens.weight.copy_(embeddings)
    model.model.embed_tokens.weight[head].mul_(0.03)
    model.lm_head.weight[plans] = namer
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    first = model.model.layers[0].self_attn
    for small in (first.q_proj, first.k_proj):  # nearly even attention
        small.weight.mul_(0.1)
    for plain in (first.v_proj, first.o_proj):
        nn.init.eye_(plain.weight)


def _means(embeddings: Tensor, prompts: Sequence[list[int]]) -> Tensor:
    """(V, H) and prompts -> (prompts, H)."""
    kept = [[token for token, luck in zip(ids, torch.rand(len(ids)).tolist(), strict=True) if luck >= LEFT_OUT] or ids
            for ids in prompts]  # fmt: skip
    starts = torch.tensor([0, *map(len, kept[:-1])]).cumsum(0)
    return nn.functional.embedding_bag(torch.tensor([t for ids in kept for t in ids]), embeddings, starts, mode="mean")


def _normal(rows: Tensor) -> Tensor:
    return nn.functional.rms_norm(rows, rows.shape[-1:])
