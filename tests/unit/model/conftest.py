"""Mends Triton's interpreter, in which the kernels run where no GPU is (tests/conftest.py asks for it)."""

import contextlib
import os


def _mend_interpreter() -> None:
    """Let loops have bounds that were loaded: Triton 3.6 asks numpy for the int of an array, which 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError):
        _mend_interpreter()
