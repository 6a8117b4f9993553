"""The operations in Triton, on CUDA and ROCm tensors; nothing outside this folder knows Triton."""
