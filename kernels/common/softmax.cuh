// Softmax by a warp, in float32, over `count` logits that lie `stride` apart.
#include "reduce.cuh"

// The sum of exp(logit - largest). A NaN is no largest, but it is in the sum.
__device__ __forceinline__ float exponentials(const float* logits, int count, int stride, float& largest) {
    int lane = threadIdx.x % 32;
    largest = logits[0];
    for (int i = lane; i < count; i += 32) largest = fmaxf(largest, logits[(size_t)i * stride]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int i = lane; i < count; i += 32) sum += expf(logits[(size_t)i * stride] - largest);
    return warp_sum(sum);
}

// -log softmax(logits)[label], in every lane
__device__ __forceinline__ float cross_entropy(const float* logits, int count, int stride, int label) {
    float largest, sum = exponentials(logits, count, stride, largest);
    return logf(sum) - (logits[(size_t)label * stride] - largest);
}

// dlogits = dloss (softmax(logits) - onehot(label))
__device__ __forceinline__ void cross_entropy_slopes(
    float* dlogits, float dloss, const float* logits, int count, int stride, int label) {
    float largest, inverse = 1.0f / exponentials(logits, count, stride, largest);
    for (int i = threadIdx.x % 32; i < count; i += 32) {
        float p = expf(logits[(size_t)i * stride] - largest) * inverse;
        dlogits[(size_t)i * stride] = dloss * (i == label ? p - 1.0f : p);
    }
}
