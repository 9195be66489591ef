"""llama.cpp with continuous batching, as a process that answers one line of requests with one line of results.

Run by the peer's Python: needs llama_cpp, gguf and numpy, nothing of ours. The first line names the model and the
sizes; each further line holds requests as [prompt, number of tokens]. Scheduling is that of llama.cpp's own server: in
every step one token of each sequence that decodes, then prompts, the oldest first, until the batch is full. Batches are
filled by numpy and the tokens chosen by one argmax, so Python's part is small; it is told apart all the same.
"""

from __future__ import annotations

import ctypes
import heapq
import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from convert import convert


class Batch:
    """A llama_batch over arrays of numpy."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.sequences = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        # The id of token i is read where the i-th of these points to.
        self._places = self.sequences.ctypes.data + 4 * np.arange(size, dtype=np.uint64)

    def of(self, count: int) -> Any:
        int32, int8 = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int8)
        return llama_cpp.llama_batch(
            n_tokens=count, token=self.tokens.ctypes.data_as(int32), embd=None,
            pos=self.positions.ctypes.data_as(int32), n_seq_id=self._ones.ctypes.data_as(int32),
            seq_id=self._places.ctypes.data_as(ctypes.POINTER(int32)), logits=self.wanted.ctypes.data_as(int8),
        )  # fmt: skip


class Server:
    """A model, a context and its slots."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        self.num_slots, size = settings["slots"], settings["step_tokens"]
        params.n_ctx = settings["slots"] * settings["context_tokens"]
        params.n_batch = params.n_ubatch = size
        params.n_seq_max = settings["slots"]
        params.n_threads = params.n_threads_batch = settings["threads"]
        params.type_k = params.type_v = 0  # float32, like the weights
        params.flash_attn_type = settings["flash_attention"]
        params.kv_unified = settings["unified"]
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._model or not self._context:
            raise RuntimeError("llama.cpp did not take the model")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = settings["vocabulary"]
        self._batch = Batch(size)

    def run(self, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
        """Answer all; seconds of the whole, and of them those inside llama.cpp."""
        llama_cpp.llama_memory_clear(self._memory, True)
        began, inside_s = time.perf_counter(), 0.0
        waiting = list(range(len(requests) - 1, -1, -1))
        free = list(range(self.num_slots))
        answers: list[list[int]] = [[] for _ in requests]
        running: list[tuple[int, int]] = []  # request and slot, those that decode
        reading: list[tuple[int, int, int]] = []  # and how much of the prompt is read
        while waiting or reading or running:
            while waiting and free:
                reading.append((waiting.pop(), heapq.heappop(free), 0))
            batch, count = self._batch, len(running)
            for place, (request, slot) in enumerate(running):
                batch.tokens[place] = answers[request][-1]
                batch.positions[place] = len(requests[request][0]) + len(answers[request]) - 1
                batch.sequences[place] = slot
            batch.wanted[:count] = 1
            told = list(running)
            left = []
            for request, slot, start in reading:
                prompt = requests[request][0]
                end = min(len(prompt), start + batch.size - count)
                until = count + end - start
                batch.tokens[count:until] = prompt[start:end]
                batch.positions[count:until] = range(start, end)
                batch.sequences[count:until] = slot
                batch.wanted[count:until] = 0
                count = until
                if end < len(prompt):
                    left.append((request, slot, end))
                elif end > start:
                    batch.wanted[until - 1] = 1
                    told.append((request, slot))
            reading = left
            call = time.perf_counter()
            if llama_cpp.llama_decode(self._context, batch.of(count)):
                raise RuntimeError("llama_decode failed")
            logits = llama_cpp.llama_get_logits(self._context)  # waits for the end of the computation
            inside_s += time.perf_counter() - call
            table = np.ctypeslib.as_array(logits, shape=(len(told), self._vocabulary))
            running = []
            for (request, slot), token in zip(told, table.argmax(-1).tolist(), strict=True):
                answers[request].append(token)
                if len(answers[request]) < requests[request][1]:
                    running.append((request, slot))
                else:
                    llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
                    heapq.heappush(free, slot)
            # Buffers of their own are computed together only for slots that follow one another, and in that order.
            running.sort(key=lambda pair: pair[1])
        return {"seconds": time.perf_counter() - began, "inside_s": inside_s, "answers": answers}


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    if level == 4:  # errors
        sys.stderr.write(text.decode(errors="replace"))


def main() -> None:
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    settings = json.loads(sys.stdin.readline())
    path = Path(settings["weights"]).with_suffix(".gguf")
    convert(Path(settings["weights"]), settings["config"], path)
    server = Server(path, settings)
    print(json.dumps({"about": llama_cpp.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(server.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
