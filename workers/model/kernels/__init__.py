"""GPU kernels in Triton. Import a module of this package only where triton is installed."""
