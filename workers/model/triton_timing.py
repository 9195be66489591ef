"""How long a configuration of the int4 products takes for a layer, if what it computes is right.

Knows one layer and one number of rows; what to choose is `triton_choice`'s.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.kernels.w4a16 import Config
from workers.model.vendor_int4 import VendorInt4

log = logging.getLogger(__name__)
LARGEST_ERROR: Final = 0.02  # of the largest number; bfloat16's own is a fifth of it
_FLUSH_BYTES: Final = 256 << 20  # what no second-level cache holds
_REPEATS: Final = 8


class Measurable(Protocol):
    """A layer as `times` needs it; see `gptq_triton`."""

    in_features: int
    out_features: int
    group: int
    vendor: VendorInt4 | None

    @property
    def qweight(self) -> Tensor:
        """(B, O, 32) int32."""

    @property
    def bias(self) -> Tensor | None:
        """(O,)."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (O, I)."""

    def product(self, rows: Tensor, config: Config) -> Tensor:
        """(N, I) -> (N, O)."""

    def for_vendor(self, dtype: torch.dtype) -> VendorInt4:
        """Return the layer by a vendor's kernels. Raises whatever these raise."""


def make_flush(device: torch.device) -> Tensor:
    """Return what `times` reads to empty the second-level cache."""
    return torch.zeros(_FLUSH_BYTES // 4, dtype=torch.float32, device=device)


@torch.inference_mode()
def times(
    layer: Measurable, bucket: int, configs: Iterable[Config], flush: Tensor, dtype: torch.dtype
) -> dict[Config, float]:
    """Return the seconds of each configuration that computes what the unpacked weights do."""
    x = torch.randn(bucket, layer.in_features, device=layer.qweight.device, dtype=dtype)
    expected = F.linear(x, layer.dense(dtype), layer.bias)
    found: dict[Config, float] = {}
    for config in configs:
        try:
            call = functools.partial(product, layer, x, config)
            error = error_of(call(), expected)
            # A vendor's launch may be one that graphs cannot hold.
            if config.kind == "vendor" and error < LARGEST_ERROR:
                error = error_of(_replayed(layer, x, config), expected)
            if not error < LARGEST_ERROR:
                log.warning("%s for %d rows is wrong by %.3f; it is left out.", config, bucket, error)
                continue
            found[config] = _seconds(call, flush)
        except Exception as failure:  # a configuration that this GPU cannot hold
            log.info("%s for %d rows is left out: %s", config, bucket, failure)
    return found


def error_of(y: Tensor, expected: Tensor) -> float:
    """Return the largest error as a part of the largest number."""
    return float((y - expected).abs().max() / expected.abs().max())


def product(layer: Measurable, x: Tensor, config: Config) -> Tensor:
    """(N, I) -> (N, O)."""
    if config.kind == "dense":
        return F.linear(x, layer.dense(x.dtype), layer.bias)
    return layer.product(x, config)


def _replayed(layer: Measurable, x: Tensor, config: Config) -> Tensor:
    """Return what a CUDA graph of the product computes when it is replayed a second time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # After another kernel, as in the model: one that starts early must wait for its rows.
        y = product(layer, x * 1, config)
    graph.replay()
    y.zero_()
    graph.replay()
    return y.clone()


def _seconds(call: Callable[[], object], flush: Tensor) -> float:
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_REPEATS)]
    for begin, end in marks:
        # Read, not written: what is written would still be on its way to memory. It also hides the launch.
        flush.sum()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in marks)[_REPEATS // 2] / 1e3
