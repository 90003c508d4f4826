// What the linear layer needs beside cuBLAS's products.
#include "storage.cuh"

// y[t, i] = bias[i]. A thread eight adjacent columns of ROWS tokens, which a block column has.
#define ROWS 16  // as in gpu.py
extern "C" __global__ void fill_rows(storage* y, const float* bias, int t, int f) {
    int first = 8 * (blockIdx.y * blockDim.x + threadIdx.x), row = blockIdx.x * ROWS, end = min(row + ROWS, t);
    if (first >= f) return;
    float numbers[8];
    load8(numbers, bias, first, f);
    for (; row < end; row++) store8(y + (size_t)row * f, first, f, numbers);
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
