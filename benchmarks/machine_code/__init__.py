"""What the Triton kernels' machine code asks of GPUs that are not here (entry: `python -m benchmarks.static`)."""
