"""The runner in the real engine: what is answered in a crowd is what would be answered alone."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chatproject.contract.errors import Failure
from chatproject.contract.messages import SamplingParams
from tests.unit.model import tiny
from workers.engine.interfaces import Row, SequenceRequest
from workers.errors import ModelLoadError, OutOfMemory
from workers.model import decode_cache
from workers.model.loader import load_model
from workers.model.runner import TorchRunner

GREEDY = SamplingParams(temperature=0, max_tokens=20)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_answers_in_a_crowd_equal_one_by_one_generate(name: str, tmp_path: Path) -> None:
    directory = tiny.save_tiny(tmp_path, name)
    chance = random.Random(5)
    prompts = [tiny.random_prompt(chance) for _ in range(8)]
    # Small steps and a small cache: prompts come in chunks beside rows that decode, and some are preempted.
    runner = tiny.make_runner(directory, kv_bytes=tiny_kv_bytes(directory, blocks=20))
    said = tiny.run(runner, [tiny.request(str(i), p, GREEDY) for i, p in enumerate(prompts)], late=4)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager"
    )
    seen = set()
    for i, prompt in enumerate(prompts):
        with torch.inference_mode():
            whole = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, use_cache=True)[0]
        expected = whole[len(prompt) :].tolist()
        if 1 in expected:
            expected = expected[: expected.index(1)]
        got = [token for token in said.tokens[str(i)] if token != 1]
        assert got == expected, f"{name}, prompt {i}"
        seen.update(expected)
    assert len(seen) >= 20, "greedy answers of this model say too little"


def tiny_kv_bytes(directory: Path, blocks: int) -> int:
    runner = tiny.make_runner(directory)
    return runner.kv_bytes // runner.num_blocks * blocks


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("llama"), initializer_range=0.15)


def test_sampled_answer_is_the_same_alone_batched_and_resumed(llama: Path) -> None:
    chance = random.Random(7)
    requests = []
    for i in range(12):
        params = SamplingParams(
            temperature=chance.choice([0.3, 0.8, 1.5]), top_p=chance.choice([1.0, 0.9, 0.5]),
            top_k=chance.choice([0, 5, 100]), seed=chance.getrandbits(64), max_tokens=20,
        )  # fmt: skip
        requests.append(tiny.request(str(i), tiny.random_prompt(chance), params))
    together = tiny.run(tiny.make_runner(llama, dtype=torch.float32), requests, late=5).tokens
    assert len({tuple(tokens) for tokens in together.values()}) == 12
    runner = tiny.make_runner(llama, dtype=torch.float32)
    for item in requests:
        assert tiny.run(runner, [item]).tokens[item.sequence_id] == together[item.sequence_id]
    for item in requests:
        before = together[item.sequence_id][: chance.randint(1, 12)]
        again = tiny.request(item.sequence_id, item.prompt, item.sampling, prefix=before)
        rest = tiny.run(runner, [again]).tokens.get(item.sequence_id, [])
        assert before + rest == together[item.sequence_id]


def test_penalised_answer_is_the_same_alone_preempted_and_resumed(llama: Path) -> None:
    chance = random.Random(9)
    requests = []
    for i in range(6):
        params = SamplingParams(
            temperature=chance.choice([0, 0.8]), seed=chance.getrandbits(64), max_tokens=24,
            min_p=chance.choice([0, 0.05]), repetition_penalty=chance.choice([1.0, 1.4]),
            presence_penalty=chance.choice([0.0, 1.0]), frequency_penalty=0.5,
            logit_bias=((1, -100.0), (chance.randrange(2, 200), 3.0)), logprobs=chance.choice([None, 2]),
        )  # fmt: skip
        requests.append(tiny.request(str(i), tiny.random_prompt(chance), params))
    small = tiny.make_runner(llama, kv_bytes=tiny_kv_bytes(llama, blocks=8))
    said = tiny.run(small, requests, late=3)
    assert said.stats.preemptions
    runner = tiny.make_runner(llama)
    for item in requests:
        alone = tiny.run(runner, [item])
        whole = alone.tokens[item.sequence_id]
        assert said.tokens[item.sequence_id] == whole
        assert said.logprobs.get(item.sequence_id) == alone.logprobs.get(item.sequence_id)
        assert len(alone.logprobs.get(item.sequence_id, ())) == (0 if item.sampling.logprobs is None else len(whole))
        before = whole[: chance.randint(1, 12)]
        again = tiny.request(item.sequence_id, item.prompt, item.sampling, prefix=before)
        assert before + tiny.run(runner, [again]).tokens.get(item.sequence_id, []) == whole
    plain = [
        dataclasses.replace(
            item,
            sampling=dataclasses.replace(
                item.sampling, frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0
            ),
        )
        for item in requests
    ]
    assert tiny.run(runner, plain).tokens != said.tokens, "the penalties change nothing here"


def test_bias_decides_and_a_bias_of_an_unknown_token_is_refused(llama: Path) -> None:
    runner = tiny.make_runner(llama)
    wanted = SamplingParams(temperature=0, max_tokens=5, logit_bias=((33, 100.0),), logprobs=1)
    mate = tiny.request("mate", [4, 5], GREEDY)
    unknown = tiny.request("unknown", [4, 5], SamplingParams(temperature=0, logit_bias=((tiny.VOCABULARY, 1.0),)))
    said = tiny.run(runner, [tiny.request("biased", [4, 5], wanted), mate, unknown])
    assert said.tokens["biased"] == [33] * 5
    assert all(item.logprob < -0.1 and item.top[0][0] != b"<33>" for item in said.logprobs["biased"])
    assert said.ends["unknown"].failure is Failure.REJECTED
    assert said.tokens["mate"] == tiny.run(runner, [mate]).tokens["mate"]


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2"])
def test_gathering_the_paged_cache_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    directory = tiny.save_tiny(tmp_path, name)
    chance = random.Random(6)
    requests = [tiny.request(str(i), tiny.random_prompt(chance), GREEDY) for i in range(6)]
    copying, gathering = tiny.make_runner(directory), tiny.make_runner(directory)
    gathering._decode_cache = None  # As on a GPU.
    assert tiny.run(gathering, requests, late=2).tokens == tiny.run(copying, requests, late=2).tokens


@pytest.mark.parametrize("kept_capacity", [512, 32])
def test_rows_that_pause_move_and_grow_decode_as_if_alone(
    llama: Path, kept_capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come and go at random, so copies are made, moved, outgrown and forgotten."""
    monkeypatch.setattr(decode_cache, "_KEPT_CAPACITY", kept_capacity)
    chance = random.Random(8)
    runner, num_blocks = tiny.make_runner(llama), 10
    prompts = [tiny.random_prompt(chance, 30, 70) for _ in range(6)]
    tables = [list(range(i * num_blocks, (i + 1) * num_blocks)) for i in range(6)]
    answers = [[runner.step([row(str(i), prompts[i], tables[i])])[0].token] for i in range(6)]
    for _ in range(100):
        some = [i for i in chance.sample(range(6), chance.randint(1, 6)) if len(prompts[i]) + len(answers[i]) < 150]
        results = runner.step([
            row(str(i), [answers[i][-1] or 0], tables[i], start=len(prompts[i]) + len(answers[i]) - 1) for i in some
        ])  # fmt: skip
        for i, result in zip(some, results, strict=True):
            answers[i].append(result.token)
    assert max(map(len, answers)) > 64
    peer = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            whole = torch.tensor([prompt + [token or 0 for token in answer]])
            best = peer(whole).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
        assert answer == best


def test_other_seed_gives_another_answer(llama: Path) -> None:
    runner = tiny.make_runner(llama)
    said = tiny.run(runner, [
        tiny.request(str(seed), [5, 6, 7], SamplingParams(temperature=1, seed=seed, max_tokens=12)) for seed in range(4)
    ]).tokens  # fmt: skip
    assert len({tuple(tokens) for tokens in said.values()}) == 4


def row(name: str, tokens: list[int], blocks: list[int], start: int = 0, params: SamplingParams | None = GREEDY) -> Row:
    return Row(sequence_id=name, tokens=tuple(tokens), start=start, block_table=tuple(blocks), sampling=params)


def test_bad_rows_fail_alone(llama: Path) -> None:
    runner = tiny.make_runner(llama, kv_bytes=tiny_kv_bytes(llama, blocks=8))
    good = row("good", [3, 4, 5], [0])
    alone = runner.step([good])[0]
    bad = [
        row("unknown token", [tiny.VOCABULARY], [1]),
        row("negative token", [-1, 3], [1]),
        row("no token", [], [1]),
        row("no such block", [3], [8]),
        row("too few blocks", [3] * 17, [1]),
        row("beyond the context", [3], [1] * 99, start=1000),
        row("before the start", [3], [1], start=-1),
        row("no temperature", [3], [1], params=SamplingParams(temperature=float("nan"))),
        row("no mass", [3], [1], params=SamplingParams(top_p=0.0)),
        row("no penalty", [3], [1], params=SamplingParams(repetition_penalty=0.0)),
        row("endless penalty", [3], [1], params=SamplingParams(presence_penalty=float("inf"))),
        row("unknown bias", [3], [1], params=SamplingParams(logit_bias=((tiny.VOCABULARY, 1.0),))),
        row("bias twice", [3], [1], params=SamplingParams(logit_bias=((5, 1.0), (5, 1.0)))),
        row("short history", [3], [1], params=SamplingParams(presence_penalty=1))._replace(history=[]),
    ]
    for item in bad:
        results = runner.step([item, good])
        assert results[0].failure is Failure.REJECTED, item.sequence_id
        assert results[1] == alone
    assert [result.failure for result in runner.step(bad)] == [Failure.REJECTED] * len(bad)
    assert runner.step([]) == []


def test_row_without_valid_numbers_fails_alone_and_leaves_nothing_behind(llama: Path) -> None:
    loaded = load_model(llama, device="cpu")
    poison = 77
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[poison] = float("nan")
    runner = TorchRunner(loaded, kv_bytes=tiny_kv_bytes(llama, blocks=8))
    good = row("good", [3, 4, 5], [0])
    alone = runner.step([good])[0]
    assert alone.token is not None
    results = runner.step(
        [row("bad", [3, poison, 5], [1]), good, row("bad decode", [poison], [2]), row("short", [9], [3])]
    )
    assert [result.failure for result in results] == [Failure.NUMERICAL, None, Failure.NUMERICAL, None]
    assert results[1] == alone
    # The blocks of the bad rows are used again, also as the unfilled end of a longer row's neighbour.
    results = runner.step([row("next", [3, 4, 5], [1]), row("decode", [9], [2])])
    assert results == [alone, runner.step([row("elsewhere", [9], [4])])[0]]
    tail = runner.step([row("long", [6], [0], start=3), row("short", [9], [2, 1])])
    assert tail[1] == results[1]


def test_absurd_temperatures_give_a_token(llama: Path) -> None:
    runner = tiny.make_runner(llama)
    for heat in (1e-30, 1e-3, 1e30, 1e300):
        result = runner.step([row("hot", [3, 4], [0], params=SamplingParams(temperature=heat, top_k=3, top_p=0.5))])[0]
        assert result.token is not None


def test_chunks_that_want_no_token_get_none(llama: Path) -> None:
    runner = tiny.make_runner(llama)
    whole = runner.step([row("whole", list(range(2, 42)), [0, 1, 2])])[0]
    assert runner.step([row("part", list(range(2, 21)), [3, 4, 5], params=None)])[0].token is None
    assert runner.step([row("part", list(range(21, 42)), [3, 4, 5], start=19)])[0] == whole


class _Trouble:
    """Stands before the model: ``fault`` gets the step's tokens and may raise, or spoil the logits."""

    def __init__(self, runner: TorchRunner, fault: Callable[[list[int]], None], poison: int | None = None) -> None:
        self._model, self._fault, self._poison = runner._model, fault, poison
        runner._model = self  # type: ignore[assignment]

    def __call__(self, **inputs: Any) -> Any:
        tokens = inputs["input_ids"][0].tolist()
        output = self._model(**inputs)  # what it wrote so far is there when the fault comes
        self._fault(tokens)
        if self._poison in tokens:
            output.logits[0, inputs["logits_to_keep"].tolist().index(tokens.index(self._poison))] = float("nan")
        return output


def crowd(chance: random.Random, count: int = 5) -> list[SequenceRequest]:
    """Sampled with penalties, greedy, and plainly sampled; none of them says ``TROUBLE``."""
    never = ((TROUBLE, -1e9), (1, -1e9))
    wishes: list[dict[str, Any]] = [{"temperature": 0}, {"presence_penalty": 1.0, "min_p": 0.02}, {"top_p": 0.9}]
    prompts = [[token for token in tiny.random_prompt(chance) if token != TROUBLE] or [5] for _ in range(count)]
    return [
        tiny.request(str(i), prompt, SamplingParams(seed=i, max_tokens=16, logit_bias=never, **wishes[i % 3]))
        for i, prompt in enumerate(prompts)
    ]


TROUBLE = 77
CULPRIT = tiny.request("culprit", [5, 6, 7], SamplingParams(temperature=0, max_tokens=30, logit_bias=((TROUBLE, 1e9),)))


def test_mates_of_a_culprit_say_the_very_same(llama: Path) -> None:
    """The culprit decodes for a while beside them; then its row is no number, or every step with it raises."""
    mates = crowd(random.Random(11))
    expected = tiny.run(tiny.make_runner(llama), mates).tokens

    def fail(tokens: list[int]) -> None:
        if TROUBLE in tokens:
            raise RuntimeError("shapes do not fit")

    for fault, poison, failure in (
        (fail, None, Failure.ENGINE_ERROR),
        (lambda tokens: None, TROUBLE, Failure.NUMERICAL),
    ):
        runner = tiny.make_runner(llama)
        _Trouble(runner, fault, poison)
        said = tiny.run(runner, [*mates[:4], CULPRIT, *mates[4:]], late=2)
        assert said.ends["culprit"].failure is failure
        assert {name: said.tokens[name] for name in expected} == expected


def test_out_of_memory_in_a_step_changes_no_answer(llama: Path) -> None:
    requests = crowd(random.Random(12))
    expected = tiny.run(tiny.make_runner(llama), requests).tokens
    runner, refused = tiny.make_runner(llama), []

    def fail(tokens: list[int]) -> None:
        if len(tokens) > 24 or (len(tokens) > 3 and not refused):
            refused.append(len(tokens))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    _Trouble(runner, fail)
    said = tiny.run(runner, requests)
    assert refused
    assert said.tokens == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)  # fmt: skip
def test_every_way_to_say_out_of_memory_is_understood(llama: Path, error: Exception) -> None:
    def fail(tokens: list[int]) -> None:
        raise error

    runner = tiny.make_runner(llama)
    _Trouble(runner, fail)
    with pytest.raises(OutOfMemory):
        runner.step([row("any", [3, 4], [0])])


def test_models_that_would_let_requests_change_each_other_are_refused(tmp_path: Path) -> None:
    directory = tiny.save_tiny(tmp_path, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(ModelLoadError, match="dynamic"):
        tiny.make_runner(directory)


def test_attention_that_is_not_computed_here_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4, tie_word_embeddings=False
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="mamba"):
        tiny.make_runner(tmp_path)


def test_cache_that_holds_no_block_says_so(llama: Path) -> None:
    with pytest.raises(ModelLoadError, match="smaller model"):
        tiny.make_runner(llama, kv_bytes=10)
