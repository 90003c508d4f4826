// Dropout, residual sum and LayerNorm, one pass each way: layer_norm.cuh has the geometry.
// Forward moves 3 numbers an element, backward 5, or 6 with a second gradient: 6 and 10 or 12 bytes in bf16.
#include "layer_norm.cuh"
#include "philox.cuh"

// A thread's part of a row, as stored.
struct Row {
    Eight<storage> x, residual;
    int position, example;
};

__device__ __forceinline__ Row read(
    const storage* x, const storage* residual, const int* positions, const int* examples, int row, int first, int c) {
    size_t at = (size_t)row * c;
    return {fetch8(x + at, first, c), fetch8(residual + at, first, c), positions[row], examples[row]};
}

// z = residual + dropout(x). Forward and backward round it alike: where a row's numbers are all the same, rstd is 1e6.
__device__ __forceinline__ void add_dropped(float (&z)[8], const Row& row, uint4 words, const Dropout& dropout) {
    float x[8];
    unpack(x, row.x);
    unpack(z, row.residual);
#pragma unroll
    for (int e = 0; e < 8; e++) z[e] = fmaf(x[e], dropout.multiplier(words, e), z[e]);
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS) forward(
    storage* y, float* mean, float* rstd, const storage* x, const storage* residual, const float* gamma,
    const float* beta, const int* positions, const int* examples, float eps, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream, int rows, int t, int c) {
    __shared__ float2 rooms[64];
    PairSums sums = {rooms, 0};
    Dropout dropout = {threshold, scale, seed, stream};
    int first = 8 * threadIdx.x, row = blockIdx.x * rows, end = min(row + rows, t);
    float weights[8], shifts[8], z[8];
    load8(weights, gamma, first, c);
    load8(shifts, beta, first, c);
    Row next = read(x, residual, positions, examples, row, first, c);
    for (; row < end; row++) {
        add_dropped(z, next, dropout.words(threadIdx.x, next.position, next.example), dropout);
        if (row + 1 < end) next = read(x, residual, positions, examples, row + 1, first, c);
        float2 moments = normalize(z, first, c, eps, sums);
        if (threadIdx.x == 0) {
            mean[row] = moments.x;
            rstd[row] = moments.y;
        }
#pragma unroll
        for (int e = 0; e < 8; e++) z[e] = z[e] * weights[e] + shifts[e];
        store8(y + (size_t)row * c, first, c, z);
    }
}

// partials (2, blocks, c): each block's sums of dgamma and of dbeta. dy2 may be null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) backward(
    storage* dx, storage* dresidual, float* partials, const storage* dy, const storage* dy2, const storage* x,
    const storage* residual, const float* mean, const float* rstd, const float* gamma, const int* positions,
    const int* examples, unsigned int threshold, float scale, unsigned long long seed, unsigned int stream, int rows,
    int t, int c) {
    __shared__ float2 rooms[64];
    PairSums sums = {rooms, 0};
    Dropout dropout = {threshold, scale, seed, stream};
    int first = 8 * threadIdx.x, row = blockIdx.x * rows, end = min(row + rows, t);
    Slopes slopes;
    slopes.begin(gamma, first, c);
    Row next = read(x, residual, positions, examples, row, first, c);
    Arriving gradient = arriving(dy, dy2, mean, rstd, row, first, c);
    for (; row < end; row++) {
        float xhat[8], d[8], row_rstd = gradient.rstd;
        uint4 words = dropout.words(threadIdx.x, next.position, next.example);
        add_dropped(xhat, next, words, dropout);
        gradient.sum(d, dy2 != nullptr);
#pragma unroll
        for (int e = 0; e < 8; e++) xhat[e] = (xhat[e] - gradient.mean) * row_rstd;
        if (row + 1 < end) {
            next = read(x, residual, positions, examples, row + 1, first, c);
            gradient = arriving(dy, dy2, mean, rstd, row + 1, first, c);
        }
        slopes.through(d, xhat, row_rstd, c, sums);
        store8(dresidual + (size_t)row * c, first, c, d);
#pragma unroll
        for (int e = 0; e < 8; e++) d[e] *= dropout.multiplier(words, e);
        store8(dx + (size_t)row * c, first, c, d);
    }
    slopes.end(partials, first, c);
}
