// Bias and tanh of a row a sequence: small arrays. Backward sums down whole columns: a block has 32 of them, its warp w
// the rows w, w + WARPS and so on, and the warps are added in order.
#define WARPS 16  // as in gpu.py

extern "C" __global__ void forward(float* y, const float* x, const float* bias, int size, int c) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = tanhf(x[i] + bias[i % c]);
}

extern "C" __global__ void backward(float* dx, float* dbias, const float* dy, const float* y, int s, int c) {
    __shared__ float sums[WARPS][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (i < c) {
        for (int row = warp; row < s; row += WARPS) {
            size_t at = (size_t)row * c + i;
            float d = dy[at] * (1.0f - y[at] * y[at]);
            dx[at] = d;
            sum += d;
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || i >= c) return;
    for (int other = 1; other < WARPS; other++) sum += sums[other][lane];
    dbias[i] += sum;
}
