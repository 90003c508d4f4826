// Sums of columns over tokens, in chunks of CHUNK rows that are added in order: one sum's bits, whatever the timing.
#include "storage.cuh"
#include "sums.cuh"

// partials[chunk, i] = sum of x[t, i] over the chunk's tokens. A thread a column, a block row a chunk.
extern "C" __global__ void sum_chunks(float* partials, const storage* x, int t, int f) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= f) return;
    float sum = 0.0f;
    int end = min((int)(blockIdx.y + 1) * CHUNK, t);
    for (int row = blockIdx.y * CHUNK; row < end; row++) sum += to_float(x[(size_t)row * f + i]);
    partials[(size_t)blockIdx.y * f + i] = sum;
}

// total[i] += sum of partials[chunk, i] over all chunks
extern "C" __global__ void add_partials(float* total, const float* partials, int chunks, int f) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= f) return;
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; chunk++) sum += partials[(size_t)chunk * f + i];
    total[i] += sum;
}
