// LayerNorm's rows, for the kernels that fuse it with something else. A block works on a row at a time, a thread on eight
// adjacent columns, what one call of Philox decides about and 16 bytes of bf16, or on several such groups: group k begins
// 8 k blockDim.x further on. A row stays in registers from its one read to its one write, and the next one is asked for
// before it is worked on. Past the row's end threads hold zeros.
#include "storage.cuh"
#include "reduce.cuh"
#define MOST_THREADS 640  // a block's, for rows of up to 5120 columns: keeps registers at 96, see layer_norm_gpu.py

// z becomes xhat = (z - mean) * rstd; returns mean and rstd.
//
// The mean is found in two steps, the second being what the first has left over: at a mean of 100 sigma the first one's
// rounding would be the largest error of the result. The variance is that of what is left.
template <int GROUPS>
__device__ __forceinline__ float2 normalize(float (&z)[GROUPS][8], int first, int c, float eps, PairSums& sums) {
    float sum = 0.0f, rest = 0.0f, squares = 0.0f, inverse = 1.0f / c;
#pragma unroll
    for (int k = 0; k < GROUPS; k++)
#pragma unroll
        for (int e = 0; e < 8; e++) sum += z[k][e];
    float mean = sums(sum, 0.0f).x * inverse;
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        int there = c - first - 8 * k * (int)blockDim.x;
#pragma unroll
        for (int e = 0; e < 8; e++) z[k][e] -= mean;
        if (there < 8) {
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e >= there) z[k][e] = 0.0f;
        }
#pragma unroll
        for (int e = 0; e < 8; e++) {
            rest += z[k][e];
            squares += z[k][e] * z[k][e];
        }
    }
    float2 left = sums(rest, squares);
    rest = left.x * inverse;
    float rstd = rsqrtf(fmaxf(left.y * inverse - rest * rest, 0.0f) + eps);
#pragma unroll
    for (int k = 0; k < GROUPS; k++)
#pragma unroll
        for (int e = 0; e < 8; e++) z[k][e] = (z[k][e] - rest) * rstd;
    return make_float2(mean + rest, rstd);
}

// What backward reads of a row beside z: the gradient that arrives, in two parts where there is a dy2, and the moments.
struct Arriving {
    Eight<storage> dy, dy2;
    float mean, rstd;

    __device__ __forceinline__ void sum(float (&d)[8], bool two) const {
        unpack(d, dy);
        if (two) {
            float other[8];
            unpack(other, dy2);
#pragma unroll
            for (int e = 0; e < 8; e++) d[e] += other[e];
        }
    }
};

__device__ __forceinline__ Arriving arriving(
    const storage* dy, const storage* dy2, const float* mean, const float* rstd, int row, int first, int c) {
    size_t at = (size_t)row * c;
    Arriving result;
    result.dy = fetch8(dy + at, first, c);
    if (dy2) result.dy2 = fetch8(dy2 + at, first, c);
    result.mean = mean[row];
    result.rstd = rstd[row];
    return result;
}

// What backward keeps of a thread's eight columns while it goes over the rows.
struct Slopes {
    float gamma[8], dgamma[8], dbeta[8];

    __device__ __forceinline__ void begin(const float* weights, int first, int c) {
        load8(gamma, weights, first, c);
#pragma unroll
        for (int e = 0; e < 8; e++) dgamma[e] = dbeta[e] = 0.0f;
    }

    // d, a row's gradient that arrives at LayerNorm's result, becomes z's; xhat is (z - mean) * rstd, d 0 past the end.
    __device__ __forceinline__ void through(
        float (&d)[8], const float (&xhat)[8], float rstd, int c, PairSums& sums) {
        float sum = 0.0f, moment = 0.0f, inverse = 1.0f / c;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            dgamma[e] += d[e] * xhat[e];
            dbeta[e] += d[e];
            d[e] *= gamma[e];
            sum += d[e];
            moment += d[e] * xhat[e];
        }
        float2 means = sums(sum, moment);
#pragma unroll
        for (int e = 0; e < 8; e++) d[e] = (d[e] - means.x * inverse - xhat[e] * (means.y * inverse)) * rstd;
    }

    // partials (2, chunks, c): the block's rows of dgamma and dbeta.
    __device__ __forceinline__ void end(float* partials, int first, int c) {
        store8(partials + (size_t)blockIdx.x * c, first, c, dgamma);
        store8(partials + ((size_t)gridDim.x + blockIdx.x) * c, first, c, dbeta);
    }
};
