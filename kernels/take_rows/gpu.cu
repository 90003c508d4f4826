// Chosen rows, eight columns a thread. What moves is a row or two a sequence, and in backward the zeros of all of dx.
#include "storage.cuh"

// The row and the first of its columns that are a thread's; false for threads past the last row.
__device__ __forceinline__ bool place(int rows, int c, int& row, int& first) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x, eights = (c + 7) / 8;
    row = i / eights;
    first = 8 * (i % eights);
    return row < rows;
}

extern "C" __global__ void take(float* y, const storage* x, const int* rows, int s, int c) {
    int row, first;
    if (!place(s, c, row, first)) return;
    float eight[8];
    load8(eight, x + (size_t)rows[row] * c, first, c);
    store8(y + (size_t)row * c, first, c, eight);
}

extern "C" __global__ void clear(storage* dx, int t, int c) {
    int row, first;
    if (!place(t, c, row, first)) return;
    float eight[8] = {};
    store8(dx + (size_t)row * c, first, c, eight);
}

extern "C" __global__ void put_rows(storage* dx, const float* dy, const int* rows, int s, int c) {
    int row, first;
    if (!place(s, c, row, first)) return;
    float eight[8];
    load8(eight, dy + (size_t)row * c, first, c);
    store8(dx + (size_t)rows[row] * c, first, c, eight);
}
