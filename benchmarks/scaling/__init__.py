"""A cost model of a step on many GPUs, held against measured points (`python -m benchmarks.scaling`)."""
