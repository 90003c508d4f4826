// Bias and GELU: a thread a column, a block row a chunk of CHUNK tokens, whose part of dbias it sums.
#include "storage.cuh"
#include "gelu.cuh"
#include "sums.cuh"

extern "C" __global__ void forward(storage* y, const storage* x, const float* bias, bool tanh, int t, int f) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= f) return;
    int end = min((int)(blockIdx.y + 1) * CHUNK, t);
    for (int row = blockIdx.y * CHUNK; row < end; row++) {
        size_t at = (size_t)row * f + i;
        put(y + at, gelu(to_float(x[at]) + bias[i], tanh));
    }
}

// dx = dy gelu'(x + bias), partials[chunk] = the chunk's sum of dx; y = gelu(x + bias), if there is a y. dx may be dy.
extern "C" __global__ void backward(
    storage* dx, storage* y, float* partials, const storage* dy, const storage* x, const float* bias, bool tanh, int t,
    int f) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= f) return;
    int end = min((int)(blockIdx.y + 1) * CHUNK, t);
    float sum = 0.0f;
    for (int row = blockIdx.y * CHUNK; row < end; row++) {
        size_t at = (size_t)row * f + i;
        float h = to_float(x[at]) + bias[i], d = to_float(dy[at]) * gelu_slope(h, tanh);
        put(dx + at, d);
        if (y) put(y + at, gelu(h, tanh));
        sum += d;
    }
    partials[(size_t)blockIdx.y * f + i] = sum;
}
