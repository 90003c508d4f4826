// Adam with moments of 8 bits: a warp a block of 256 elements, eight a lane, whose moments stay in registers until the
// block's largest are known. 16 bytes move an element: p and two codes both ways, and g. codes.py has their numbers, which
// are computed here, as in cpu.py: a table that each lane reads elsewhere would be slower.
#include "storage.cuh"
#include "reduce.cuh"
#define BLOCK 256
#define SMALLEST 3.814697265625e-6f           // 8^-6, the smallest number of m's codes
#define SMALLEST_ROOT 4.76837158203125e-7f    // 8^-7, that of root's
#define TINY 1.17549435082228751e-38f         // 2^-126: below it a block's largest counts as 0
#define NOT_ZERO 1.40129846432481707e-45f     // 2^-149, the smallest float32

// The number of a code of so many bits, times 8^bits. As a float a code has its leading one in its exponent.
__device__ __forceinline__ float number_of(unsigned int code) {
    float x = (float)code, one = __uint_as_float(__float_as_uint(x) & 0x7f800000u);
    return (x * 7.0f + 7.0f - one * 6.0f) * one * one;
}

// The code whose number is nearest to x, from 0 to 1: 0 for x below `least`, else that of the smallest number at least.
// `steps` is how many the range below 1 has.
//
// After r divisions by 8 the codes begin with n - 1 for n = steps / 2^r, and x 8^r is from 1/8 to 1: the code is
// n - 1 + n (x 8^r - 1/8) 8/7. Where x lies on the border of two ranges both give one code.
__device__ __forceinline__ unsigned int code_of(float x, float steps, float smallest, float least) {
    if (__float_as_uint(x) < __float_as_uint(least)) return 0;  // as floats NOT_ZERO is 0, where subnormals are flushed
    unsigned int number = __float_as_uint(fmaxf(x, smallest));
    unsigned int halvings = (0x40000000u - number) >> 23;  // j + 1 for x above 2^-(j + 1) and up to 2^-j
    // r is a third of j, rounded down, here as exponents add it: 85/256 is near enough for all j up to 23.
    unsigned int divisions = ((halvings * 85) >> 8) << 23;
    float n = __uint_as_float(__float_as_uint(steps) - divisions);
    float scaled = __uint_as_float(number + 2 * divisions);  // x 4^r, that is x 8^r n / steps
    return __float2int_rn(scaled * (steps * (8.0f / 7.0f)) + n * (6.0f / 7.0f) - 1.0f);
}

// 1 / largest; both are 0 for a number too small to be divided by.
__device__ __forceinline__ float share_of(float& largest) {
    if (!(largest < TINY)) return 1.0f / largest;
    return largest = 0.0f;
}

__device__ __forceinline__ unsigned int byte_of(uint2 eight, int e) {
    return (e < 4 ? eight.x : eight.y) >> 8 * (e % 4) & 255;
}

extern "C" __global__ void update(
    float* p, unsigned char* m, unsigned char* root, float* m_largest, float* root_largest, const float* g,
    const float* clipping, float lr, float keep1, float new1, float keep2, float new2, float eps, float decay,
    float unbias1, float unbias2, long long n) {
    float scale = *clipping;
    if (isnan(scale)) return;
    int block = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    long long first = (long long)block * BLOCK + 8 * (threadIdx.x % 32);
    if ((long long)block * BLOCK >= n) return;
    int size = n - first >= 8 ? 8 : n > first ? (int)(n - first) : 0;
    bool vectors = size == 8 && aligned(p) && aligned(g);
    float weights[8], gradients[8], moments[8], roots[8];
    if (vectors) {
        load8(weights, p + first, 0, 8);
        load8(gradients, g + first, 0, 8);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            weights[e] = e < size ? p[first + e] : 0.0f;
            gradients[e] = e < size ? g[first + e] : 0.0f;
        }
    }
    uint2 *codes = (uint2*)(m + first), *root_codes = (uint2*)(root + first), before = *codes, root_before = *root_codes;
    float m_unit = keep1 * (m_largest[block] * 4.76837158203125e-7f);         // 8^-7
    float root_unit = root_largest[block] * 5.9604644775390625e-8f;           // 8^-8
    float most = 0.0f, most_root = 0.0f;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float gradient = gradients[e] * scale;
        unsigned int code = byte_of(before, e);
        float number = number_of(code & 127), r = number_of(byte_of(root_before, e)) * root_unit;
        moments[e] = (code & 128 ? -number : number) * m_unit + gradient * new1;
        roots[e] = sqrtf(r * r * keep2 + gradient * gradient * new2);
        float step = moments[e] * unbias1 / (roots[e] * unbias2 + eps) + weights[e] * decay;
        weights[e] -= step * lr;
        most = fmaxf(most, fabsf(moments[e]));
        most_root = fmaxf(most_root, roots[e]);
    }
    if (vectors) {
        put8(p + first, weights);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e >= size) break;
            p[first + e] = weights[e];
        }
    }
    most = warp_max(most);
    most_root = warp_max(most_root);
    float share = share_of(most), root_share = share_of(most_root);
    unsigned int after[2] = {}, root_after[2] = {};
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float moment = moments[e] * share;
        unsigned int sign = __float_as_uint(moment) >> 31 << 7;
        unsigned int code = code_of(fabsf(moment), 64.0f, SMALLEST, 0.5f * SMALLEST) | sign;
        after[e / 4] |= code << 8 * (e % 4);
        root_after[e / 4] |= code_of(roots[e] * root_share, 128.0f, SMALLEST_ROOT, NOT_ZERO) << 8 * (e % 4);
    }
    *codes = make_uint2(after[0], after[1]);
    *root_codes = make_uint2(root_after[0], root_after[1]);
    if (threadIdx.x % 32 == 0) {
        m_largest[block] = most;
        root_largest[block] = most_root;
    }
}
