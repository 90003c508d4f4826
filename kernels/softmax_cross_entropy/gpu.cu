// Softmax and cross entropy: a warp a row.
#include "softmax.cuh"

__device__ __forceinline__ int row_of_warp() { return (blockIdx.x * blockDim.x + threadIdx.x) / 32; }

extern "C" __global__ void forward(float* loss, const float* logits, const int* labels, int s, int k) {
    int row = row_of_warp();
    if (row >= s) return;
    float cost = cross_entropy(logits + (size_t)row * k, k, 1, labels[row]);
    if (threadIdx.x % 32 == 0) loss[row] = cost;
}

extern "C" __global__ void backward(
    float* dlogits, const float* dloss, const float* logits, const int* labels, int s, int k) {
    int row = row_of_warp();
    if (row >= s) return;
    size_t at = (size_t)row * k;
    cross_entropy_slopes(dlogits + at, dloss[row], logits + at, k, 1, labels[row]);
}
