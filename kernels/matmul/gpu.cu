// What the linear layer needs beside cuBLAS's products.
#include "storage.cuh"

// y[t, i] = bias[i]
extern "C" __global__ void fill_rows(storage* y, const float* bias, long long size, int f) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < size) put(y + at, bias[at % f]);
}

// y = x rounded to bf16, four elements a thread: 6 bytes an element
extern "C" __global__ void round_to_bf16(unsigned short* y, const float* x, long long size) {
    long long at = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (at + 4 <= size) {
        put4(y + at, load4(x + at));
    } else {
        for (; at < size; at++) y[at] = to_bf16(x[at]);
    }
}
