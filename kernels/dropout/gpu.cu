// Dropout of token rows: a thread the eight columns that one call of Philox decides about. 8 bytes move an element.
#include "storage.cuh"
#include "philox.cuh"

extern "C" __global__ void forward(
    float* y, const float* x, const int* positions, const int* examples, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream, int t, int c) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x, eights = (c + 7) / 8;
    int row = i / eights, block = i % eights;
    if (row >= t) return;
    Dropout dropout = {threshold, scale, seed, stream};
    uint4 words = dropout.words(block, positions[row], examples[row]);
    float eight[8];
    load8(eight, x + (size_t)row * c, 8 * block, c);
#pragma unroll
    for (int e = 0; e < 8; e++) eight[e] *= dropout.multiplier(words, e);
    store8(y + (size_t)row * c, 8 * block, c, eight);
}
