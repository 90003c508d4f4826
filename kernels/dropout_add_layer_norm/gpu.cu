// Dropout, residual sum and LayerNorm, one pass each way: layer_norm.cuh has the geometry.
// Forward moves 3 numbers an element, backward 5, or 6 with a second gradient: 6 and 10 or 12 bytes in bf16.
#include "layer_norm.cuh"
#include "philox.cuh"

// A thread's part of a row, as stored.
template <int GROUPS> struct Row {
    Eight<storage> x[GROUPS], residual[GROUPS];
    int position, example;
};

template <int GROUPS>
__device__ __forceinline__ Row<GROUPS> read(
    const storage* x, const storage* residual, const int* positions, const int* examples, int row, int first, int c) {
    size_t at = (size_t)row * c;
    Row<GROUPS> result;
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        int column = first + 8 * k * blockDim.x;
        result.x[k] = fetch8(x + at, column, c), result.residual[k] = fetch8(residual + at, column, c);
    }
    result.position = positions[row], result.example = examples[row];
    return result;
}

// z = residual + dropout(x). Forward and backward round it alike: where a row's numbers are all the same, rstd is 1e6.
__device__ __forceinline__ void add_dropped(
    float (&z)[8], const Eight<storage>& stored, const Eight<storage>& residual, uint4 words, const Dropout& dropout) {
    float x[8];
    unpack(x, stored);
    unpack(z, residual);
#pragma unroll
    for (int e = 0; e < 8; e++) z[e] = fmaf(x[e], dropout.multiplier(words, e), z[e]);
}

// What forward is launched with.
struct Forward {
    storage* y;
    float *mean, *rstd;
    const storage *x, *residual;
    const float *gamma, *beta;
    const int *positions, *examples;
    float eps;
    Dropout dropout;
    int rows, t, c;
};

template <int GROUPS> __device__ __forceinline__ void add_and_normalize(const Forward& f, PairSums sums) {
    if (GROUPS > 1) __builtin_assume(f.c % 8 == 0);  // the launcher sees to it
    int first = 8 * threadIdx.x, row = blockIdx.x * f.rows, end = min(row + f.rows, f.t);
    Row<GROUPS> next = read<GROUPS>(f.x, f.residual, f.positions, f.examples, row, first, f.c);
    for (; row < end; row++) {
        float z[GROUPS][8];
#pragma unroll
        for (int k = 0; k < GROUPS; k++) {
            uint4 words = f.dropout.words(threadIdx.x + k * blockDim.x, next.position, next.example);
            add_dropped(z[k], next.x[k], next.residual[k], words, f.dropout);
        }
        if (row + 1 < end) next = read<GROUPS>(f.x, f.residual, f.positions, f.examples, row + 1, first, f.c);
        float2 moments = normalize(z, first, f.c, f.eps, sums);
        if (threadIdx.x == 0) {
            f.mean[row] = moments.x;
            f.rstd[row] = moments.y;
        }
#pragma unroll
        for (int k = 0; k < GROUPS; k++) {
            int column = first + 8 * k * blockDim.x;
            float weights[8], shifts[8];  // from the cache each time: there are no registers for them
            load8(weights, f.gamma, column, f.c);
            load8(shifts, f.beta, column, f.c);
#pragma unroll
            for (int e = 0; e < 8; e++) z[k][e] = z[k][e] * weights[e] + shifts[e];
            store8(f.y + (size_t)row * f.c, column, f.c, z[k]);
        }
    }
}

// groups: of eight columns that a thread has, 1 to 4; more than one for bf16 and c % 8 == 0 alone.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) forward(
    storage* y, float* mean, float* rstd, const storage* x, const storage* residual, const float* gamma,
    const float* beta, const int* positions, const int* examples, float eps, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream, int groups, int rows, int t, int c) {
    __shared__ float2 rooms[64];
    PairSums sums = {rooms, 0};
    Dropout dropout = {threshold, scale, seed, stream};
    Forward f = {y, mean, rstd, x, residual, gamma, beta, positions, examples, eps, dropout, rows, t, c};
    if (groups == 1) add_and_normalize<1>(f, sums);
    else if (sizeof(storage) > 2) return;
    else if (groups == 2) add_and_normalize<2>(f, sums);
    else if (groups == 3) add_and_normalize<3>(f, sums);
    else add_and_normalize<4>(f, sums);
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
    Row<1> next = read<1>(x, residual, positions, examples, row, first, c);
    Arriving gradient = arriving(dy, dy2, mean, rstd, row, first, c);
    for (; row < end; row++) {
        float xhat[8], d[8], row_rstd = gradient.rstd;
        uint4 words = dropout.words(threadIdx.x, next.position, next.example);
        add_dropped(xhat, next.x[0], next.residual[0], words, dropout);
        gradient.sum(d, dy2 != nullptr);
#pragma unroll
        for (int e = 0; e < 8; e++) xhat[e] = (xhat[e] - gradient.mean) * row_rstd;
        if (row + 1 < end) {
            next = read<1>(x, residual, positions, examples, row + 1, first, c);
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
