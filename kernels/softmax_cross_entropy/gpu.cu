// Softmax and cross entropy: a warp a row, in float32 whatever activations are stored in.
#include "reduce.cuh"

// The row of a warp; false where there is none.
__device__ __forceinline__ bool find(const float*& logits, int& row, int s, int k) {
    row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    logits += (size_t)row * k;
    return row < s;
}

// The sum of exp(logit - largest). A NaN is no largest, but it is in the sum.
__device__ __forceinline__ float exponentials(const float* logits, int k, float& largest) {
    int lane = threadIdx.x % 32;
    largest = logits[0];
    for (int i = lane; i < k; i += 32) largest = fmaxf(largest, logits[i]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int i = lane; i < k; i += 32) sum += expf(logits[i] - largest);
    return warp_sum(sum);
}

extern "C" __global__ void forward(float* loss, const float* logits, const int* labels, int s, int k) {
    int row;
    if (!find(logits, row, s, k)) return;
    float largest, sum = exponentials(logits, k, largest);
    if (threadIdx.x % 32 == 0) loss[row] = logf(sum) - (logits[labels[row]] - largest);
}

extern "C" __global__ void backward(
    float* dlogits, const float* dloss, const float* logits, const int* labels, int s, int k) {
    int row;
    if (!find(logits, row, s, k)) return;
    float largest, inverse = 1.0f / exponentials(logits, k, largest);
    for (int i = threadIdx.x % 32; i < k; i += 32) {
        float p = expf(logits[i] - largest) * inverse;
        dlogits[(size_t)row * k + i] = dloss[row] * (i == labels[row] ? p - 1.0f : p);
    }
}
