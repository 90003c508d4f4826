// Sums over a warp or a block, in one order whatever the timing.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {  // of numbers: NaN is passed over
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// The sum over a block of whole warps, in every thread. `room`: 32 numbers in shared memory; free again on return.
template <class T> __device__ __forceinline__ T block_sum(T x, T* room) {
    int warps = (blockDim.x + 31) / 32, lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? room[lane] : T(0));
    __syncthreads();
    return x;
}

// The sums of two numbers over a block of whole warps, in every thread, at one barrier a call, or none in a block of one.
// Two rooms take turns: what one call left in shared memory has been read by all when the call after the next one writes
// there.
struct PairSums {
    float2* rooms;  // 64, in shared memory
    int turn;

    __device__ __forceinline__ float2 operator()(float a, float b) {
        int lane = threadIdx.x % 32, warps = blockDim.x / 32;
        bool upper = lane >= 16;  // the lower half of a warp sums a, the upper half b
        float sum = upper ? b : a;
        sum += __shfl_xor_sync(0xffffffffu, upper ? a : b, 16);
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (warps == 1) return make_float2(__shfl_sync(0xffffffffu, sum, 0), __shfl_sync(0xffffffffu, sum, 16));
        float2* room = rooms + 32 * turn;
        if (lane % 16 == 0) (upper ? room[threadIdx.x / 32].y : room[threadIdx.x / 32].x) = sum;
        __syncthreads();
        turn ^= 1;
        float2 sums = room[0];
#pragma unroll 1
        for (int warp = 1; warp < warps; warp++) {
            float2 other = room[warp];
            sums.x += other.x;
            sums.y += other.y;
        }
        return sums;
    }
};
