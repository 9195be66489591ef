"""A quantised layer by a vendor's kernels for CUDA: those of the package humming-kernels, where it is installed.

Optional. The package compiles its kernels when they are first used, some seconds each, and keeps them on disk. Its
scales have the type of the rows, so float16 scales are rounded where the rows are bfloat16. Where it gains enough,
`triton_choice` measures; what it computes is compared with our product there.

Knows the package's calls and layout, and that of `kernels.w4a16`. Was written after version 0.1.19.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_PACKAGE: Final = "humming"
_LOCKS: Final = 2048  # int32 by which its programs wait for each other; zeros before and after
_SYMMETRIC_ZERO: Final = 8  # what the package takes for the zero where it is given none


@functools.cache
def load() -> ModuleType | None:
    """Import the package, once; None where it is missing or broken."""
    # Importing it would start compilers beside the worker, for the first kernels to come sooner.
    os.environ.setdefault("HUMMING_DISABLE_PARALLEL_BUILD", "1")
    try:
        package = importlib.import_module(_PACKAGE)
        for part in ("dtypes", "ops", "schema", "transform", "tune"):
            importlib.import_module(f"{_PACKAGE}.{part}")
    except ModuleNotFoundError as error:
        if error.name == _PACKAGE:
            log.info("The package humming-kernels is not installed; int4 products are by our own kernels.")
        else:
            log.warning("The package humming-kernels lacks %s; int4 products are by our own kernels.", error.name)
        return None
    except Exception as error:  # compiled parts that do not fit this machine fail in any way
        log.warning("The package humming-kernels is broken (%s); int4 products are by our own kernels.", error)
        return None
    return package


def version() -> str | None:
    """Return the package's version, None where it cannot be used."""
    package = load()
    return None if package is None else str(getattr(package, "__version__", "unknown"))


# N rows, I inputs, O outputs, G groups, B blocks of 256 inputs
class VendorInt4:
    """One layer's weights in the package's layout, beside our own: as much memory again."""

    def __init__(
        self,
        qweight: Tensor,
        scaling: Tensor,
        bias: Tensor | None,
        *,
        inputs: int,
        group: int,
        is_bfloat16_scale: bool,
        dtype: torch.dtype,
    ) -> None:
        """Convert on the GPU. Raises whatever the package raises for what it does not take."""
        package = load()
        if package is None:
            raise RuntimeError("the package humming-kernels cannot be used")
        self.dtype = dtype  # of the rows
        self._device = qweight.device
        tensors = stored(
            qweight, scaling, bias, inputs=inputs, group=group, is_bfloat16_scale=is_bfloat16_scale, dtype=dtype
        )
        has_zeros = "zero_point" in tensors
        scale_type = package.dtypes.DataType.from_torch_dtype(dtype)
        schema = package.schema.HummingWeightSchema(
            b_dtype=package.dtypes.DataType.from_str("uint4"), bs_dtype=scale_type,
            weight_scale_group_size=0 if group >= inputs else group, has_zero_point=has_zeros,
        )  # fmt: skip
        self._config, self._tensors = package.transform.prepare_and_transform_humming_tensors(
            tensors, shape_n=qweight.shape[1], shape_k=inputs, weight_schema=schema, has_bias=bias is not None,
            torch_dtype=dtype, device=self._device,
        )  # fmt: skip
        self._layer = self._config.to_str()
        # Not shared with other layers: the next one's kernel may start before this one's has ended.
        self._locks = torch.zeros(_LOCKS, dtype=torch.int32, device=self._device)
        self._launches: dict[int, str] = {}

    def product(self, rows: Tensor, bucket: int) -> Tensor:
        """(N, I) -> (N, O) by the kernel for ``bucket`` rows, which are at least N.

        Capturable in a CUDA graph from the second call for a bucket on: the first compiles and loads.
        """
        package = load()
        assert package is not None
        if bucket not in self._launches:
            # Left to itself, the package compiles a kernel for each of some eighty ranges of rows.
            launch = package.tune.get_heuristics_config(self._config, shape_m=bucket, device=self._device)
            self._launches[bucket] = json.dumps(launch)
        y: Tensor = package.ops.humming_gemm(
            layer_config=self._layer, tuning_config=self._launches[bucket], inputs=rows, locks=self._locks,
            **self._tensors,
        )  # fmt: skip
        return y


def stored(
    qweight: Tensor,
    scaling: Tensor,
    bias: Tensor | None,
    *,
    inputs: int,
    group: int,
    is_bfloat16_scale: bool,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return a layer of `kernels.w4a16` as the package reads it, before it moves anything about for its kernels.

    ``weight`` (O, I / 8) and ``zero_point`` (O / 8, G) hold eight integers each, lowest bits first; ``weight_scale`` is
    (O, G). Without ``zero_point`` the zero is 8.
    """
    outputs = qweight.shape[1]
    words = torch.stack([_words((qweight >> (4 * place)) & 0xF) for place in range(8)], 2)  # (B, O, 8, 4)
    weight = words.transpose(0, 1).reshape(outputs, -1)[:, : inputs // 8]
    groups = max(1, inputs // group)
    zeros = (scaling[:groups] >> 16) & 0xF  # (G, O)
    bits = scaling[:groups].to(torch.int16)
    scales = bits.view(torch.bfloat16 if is_bfloat16_scale else torch.float16)  # (G, O)
    tensors = {"weight": weight.contiguous(), "weight_scale": scales.to(dtype).t().contiguous()}
    if bool((zeros != _SYMMETRIC_ZERO).any()):
        tensors["zero_point"] = _words(zeros).t().contiguous()
    if bias is not None:
        tensors["bias"] = bias.to(dtype)
    return tensors


def _words(integers: Tensor) -> Tensor:
    """(..., M) -> (..., M / 8) int32."""
    spread = integers.unflatten(-1, (-1, 8))
    words = spread[..., 0].clone()
    for place in range(1, 8):
        words |= spread[..., place] << (4 * place)
    return words
