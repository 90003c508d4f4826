// Squared error: a thread a sequence.
extern "C" __global__ void forward(float* loss, const float* x, const float* target, int s) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s) loss[i] = (x[i] - target[i]) * (x[i] - target[i]);
}

extern "C" __global__ void backward(float* dx, const float* dloss, const float* x, const float* target, int s) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s) dx[i] = 2.0f * dloss[i] * (x[i] - target[i]);
}
