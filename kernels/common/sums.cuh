// Tokens are summed in chunks of so many, and the chunks in order: kernels/common/sums_gpu.py.
#define CHUNK 32
