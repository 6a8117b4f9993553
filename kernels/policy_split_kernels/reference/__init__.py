"""The specification in plain PyTorch; `cpu` and `gpu` have functions of the same names and signatures."""
