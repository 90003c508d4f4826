// Sums of columns over tokens, in chunks of `rows` that are added in order: one sum's bits, whatever the timing.
#include "storage.cuh"
#define WARPS 16  // as in sums_gpu.py

// partials[chunk, i] = sum of x[t, i] over the chunk's tokens. A thread eight adjacent columns, a block column a chunk.
extern "C" __global__ void sum_chunks(float* partials, const storage* x, int rows, int t, int f) {
    int first = 8 * (blockIdx.y * blockDim.x + threadIdx.x), row = blockIdx.x * rows, end = min(row + rows, t);
    if (first >= f) return;
    float sums[8] = {}, numbers[8];
#pragma unroll 4
    for (; row < end; row++) {
        load8(numbers, x + (size_t)row * f, first, f);
#pragma unroll
        for (int e = 0; e < 8; e++) sums[e] += numbers[e];
    }
    store8(partials + (size_t)blockIdx.x * f, first, f, sums);
}

// total[i] += sum of partials[chunk, i] over all chunks; blocks of the second row in y add the partial sums that follow
// to `second`. 32 columns a block, whose warp w takes chunks w, w + WARPS and so on: thousands of chunks one after the
// other would be thousands of waits for memory. Then warps are added in order.
extern "C" __global__ void add_partials(float* total, float* second, const float* partials, int chunks, int f) {
    __shared__ float sums[WARPS][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
    if (blockIdx.y) total = second, partials += (size_t)chunks * f;
    float sum = 0.0f;
    if (i < f) {
#pragma unroll 8
        for (int chunk = warp; chunk < chunks; chunk += WARPS) sum += partials[(size_t)chunk * f + i];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || i >= f) return;
    for (int other = 1; other < WARPS; other++) sum += sums[other][lane];
    total[i] += sum;
}
