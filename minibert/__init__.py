"""BERT fine-tuning from scratch: a small autograd over Numba and CUDA kernels."""
