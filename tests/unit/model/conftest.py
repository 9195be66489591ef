"""Triton's kernels run interpreted where no GPU is; it wants to know before it is imported."""

import contextlib
import os
from pathlib import Path


def _mend_interpreter() -> None:
    """Let loops have bounds that were loaded: Triton 3.6 asks numpy for the int of an array, which 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        _mend_interpreter()
