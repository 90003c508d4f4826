// The largest logits of each window: a block a window and column. A logit's place among all is how many stand before it,
// each being compared with each: 512 tokens take a block less time than sorting them would, and any number works.
#define TILE 128  // logits compared with at a time: a block's threads, as in gpu.py

// A number that is larger for what must stand earlier: NaN, then logits downwards, -0 as 0.
__device__ __forceinline__ unsigned int rank_of(float logit) {
    if (logit != logit) return 0xffffffffu;
    unsigned int bits = __float_as_uint(logit + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// values and places (windows, 2, n)
extern "C" __global__ void __launch_bounds__(TILE) forward(
    float* values, int* places, const float* logits, const int* offsets, int n) {
    __shared__ unsigned int tile[TILE];
    int begin = offsets[blockIdx.x], size = offsets[blockIdx.x + 1] - begin;
    size_t to = ((size_t)blockIdx.x * 2 + blockIdx.y) * n;
    logits += 2 * (size_t)begin + blockIdx.y;
    for (int first = 0; first < size; first += TILE) {
        int i = first + threadIdx.x, before = 0;
        float logit = i < size ? logits[2 * (size_t)i] : 0.0f;
        unsigned int rank = rank_of(logit);
        for (int start = 0; start < size; start += TILE) {
            int other = start + threadIdx.x, count = min(TILE, size - start);
            __syncthreads();
            if (other < size) tile[threadIdx.x] = rank_of(logits[2 * (size_t)other]);
            __syncthreads();
            for (int k = 0; k < count; k++) before += tile[k] > rank || (tile[k] == rank && start + k < i);
        }
        if (i < size && before < n) {
            values[to + before] = logit;
            places[to + before] = i;
        }
    }
    for (int i = size + threadIdx.x; i < n; i += TILE) {
        values[to + i] = __uint_as_float(0xff800000u);  // -inf
        places[to + i] = -1;
    }
}
