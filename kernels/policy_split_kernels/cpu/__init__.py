"""The operations by the C++ library (sources: kernels/cpp), on CPU tensors; `library` alone knows ctypes."""
