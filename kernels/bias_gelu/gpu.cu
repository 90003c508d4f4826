// Bias and GELU: a thread eight adjacent columns, a block column a chunk of `rows` tokens, whose part of dbias it sums. In
// bf16 forward moves 4 bytes an element, backward 6, or 8 where it writes y too. The next row is asked for before this one
// is written, because the compiler has to take them for one.
#include "storage.cuh"
#include "gelu.cuh"

template <bool TANH>
__device__ __forceinline__ void activate(storage* y, const storage* x, const float* bias, int rows, int t, int f) {
    int first = 8 * (blockIdx.y * blockDim.x + threadIdx.x), row = blockIdx.x * rows, end = min(row + rows, t);
    if (first >= f) return;
    float shifts[8], h[8];
    load8(shifts, bias, first, f);
    Eight<storage> next = fetch8(x + (size_t)row * f, first, f);
    for (; row < end; row++) {
        unpack(h, next);
        if (row + 1 < end) next = fetch8(x + (size_t)(row + 1) * f, first, f);
#pragma unroll
        for (int e = 0; e < 8; e++) h[e] = gelu<TANH>(h[e] + shifts[e]);
        store8(y + (size_t)row * f, first, f, h);
    }
}

template <bool TANH>
__device__ __forceinline__ void differentiate(
    storage* dx, storage* y, float* partials, const storage* dy, const storage* x, const float* bias, int rows, int t,
    int f) {
    int first = 8 * (blockIdx.y * blockDim.x + threadIdx.x), row = blockIdx.x * rows, end = min(row + rows, t);
    if (first >= f) return;
    float shifts[8], h[8], d[8], sums[8] = {};
    load8(shifts, bias, first, f);
    Eight<storage> next = fetch8(x + (size_t)row * f, first, f), slopes = fetch8(dy + (size_t)row * f, first, f);
    for (; row < end; row++) {
        size_t at = (size_t)row * f;
        unpack(h, next);
        unpack(d, slopes);
        if (row + 1 < end) next = fetch8(x + at + f, first, f), slopes = fetch8(dy + at + f, first, f);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float2 both = gelu_and_slope<TANH>(h[e] + shifts[e]);
            h[e] = both.x;
            d[e] *= both.y;
            sums[e] += d[e];
        }
        store8(dx + at, first, f, d);
        if (y) store8(y + at, first, f, h);
    }
    store8(partials + (size_t)blockIdx.x * f, first, f, sums);
}

extern "C" __global__ void forward(storage* y, const storage* x, const float* bias, bool tanh, int rows, int t, int f) {
    if (tanh) activate<true>(y, x, bias, rows, t, f);
    else activate<false>(y, x, bias, rows, t, f);
}

// dx = dy gelu'(x + bias), partials[chunk] = the chunk's sum of dx; y = gelu(x + bias), if there is a y. dx may be dy.
extern "C" __global__ void backward(
    storage* dx, storage* y, float* partials, const storage* dy, const storage* x, const float* bias, bool tanh,
    int rows, int t, int f) {
    if (tanh) differentiate<true>(dx, y, partials, dy, x, bias, rows, t, f);
    else differentiate<false>(dx, y, partials, dy, x, bias, rows, t, f);
}
