// A sum of squares in float64: a block a piece of PIECE elements, and one block the pieces. 4 bytes move an element.
#include "storage.cuh"
#include "reduce.cuh"
#define PIECE 32768  // as in gpu.py

extern "C" __global__ void sum_pieces(double* partials, const float* x, long long n) {
    __shared__ double room[32];
    long long begin = (long long)blockIdx.x * PIECE, end = min(begin + PIECE, n);
    bool vectors = aligned(x);
    double sum = 0.0;
#pragma unroll 4
    for (long long i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
        if (vectors && i + 4 <= end) {
            float4 four = load4(x + i);
            sum += (double)four.x * four.x + (double)four.y * four.y + (double)four.z * four.z + (double)four.w * four.w;
        } else {
            for (long long k = i; k < min(i + 4, end); k++) sum += (double)x[k] * x[k];
        }
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void sum_partials(double* total, const double* partials, int pieces) {
    __shared__ double room[32];
    double sum = 0.0;
    for (int i = threadIdx.x; i < pieces; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) total[0] = sum;
}
