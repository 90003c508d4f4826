// Sums over a warp or a block, in one order whatever the timing.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// The sum over a block of whole warps, in every thread. `room`: 32 floats of shared memory; free again on return.
__device__ __forceinline__ float block_sum(float x, float* room) {
    int warps = (blockDim.x + 31) / 32, lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? room[lane] : 0.0f);
    __syncthreads();
    return x;
}
