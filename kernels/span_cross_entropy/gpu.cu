// The loss of answer spans: a warp, alone in its block, a window; its two columns one after the other.
#include "softmax.cuh"

extern "C" __global__ void forward(
    float* loss, const float* logits, const int* offsets, const int* starts, const int* ends) {
    int s = blockIdx.x, size = offsets[s + 1] - offsets[s];
    float cost = 0.0f;
    if (size) {
        logits += 2 * (size_t)offsets[s];
        cost = 0.5f * (cross_entropy(logits, size, 2, starts[s]) + cross_entropy(logits + 1, size, 2, ends[s]));
    }
    if (threadIdx.x == 0) loss[s] = cost;
}

extern "C" __global__ void backward(
    float* dlogits, const float* dloss, const float* logits, const int* offsets, const int* starts, const int* ends) {
    int s = blockIdx.x, size = offsets[s + 1] - offsets[s];
    if (!size) return;
    size_t at = 2 * (size_t)offsets[s];
    cross_entropy_slopes(dlogits + at, 0.5f * dloss[s], logits + at, size, 2, starts[s]);
    cross_entropy_slopes(dlogits + at + 1, 0.5f * dloss[s], logits + at + 1, size, 2, ends[s]);
}
