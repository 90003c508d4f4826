// Storage: activations are float or, with half of the bytes, bf16 as unsigned short. `storage` is the one a source is
// compiled for; kernels read both as float and write with one rounding, to the nearest, ties to even.
#ifndef STORAGE
#define STORAGE float
#endif
typedef STORAGE storage;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(unsigned short x) { return __uint_as_float((unsigned int)x << 16); }

__device__ __forceinline__ unsigned short to_bf16(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    unsigned int bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN, as the instruction has it
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
#endif
}

__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(unsigned short* to, float x) { *to = to_bf16(x); }

// Four elements at once: 16 bytes or 8. The address must be a multiple of that.
__device__ __forceinline__ float4 load4(const float* from) { return *(const float4*)from; }
__device__ __forceinline__ float4 load4(const unsigned short* from) {
    ushort4 x = *(const ushort4*)from;
    return make_float4(to_float(x.x), to_float(x.y), to_float(x.z), to_float(x.w));
}
__device__ __forceinline__ void put4(float* to, float4 x) { *(float4*)to = x; }
__device__ __forceinline__ void put4(unsigned short* to, float4 x) {
    *(ushort4*)to = make_ushort4(to_bf16(x.x), to_bf16(x.y), to_bf16(x.z), to_bf16(x.w));
}

// Whether `load4` and `put4` may be used on an array of float that may begin anywhere, such as a part of a flat buffer.
__device__ __forceinline__ bool aligned(const float* array) { return (size_t)array % 16 == 0; }

// Eight adjacent columns of a row as they are stored, so that they can be asked for long before they are needed.
template <class T> struct Eight;
template <> struct Eight<float> { float4 low, high; };
template <> struct Eight<unsigned short> { uint4 pairs; };

// Columns first to first + 7 of a row of c, zeros past its end; by 16 bytes where c is a multiple of 8.
__device__ __forceinline__ Eight<float> fetch8(const float* row, int first, int c) {
    const float* x = row + first;
    int n = c - first;
    float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (c % 8 == 0) return n > 0 ? Eight<float>{load4(x), load4(x + 4)} : Eight<float>{none, none};
    return {make_float4(n > 0 ? x[0] : 0.0f, n > 1 ? x[1] : 0.0f, n > 2 ? x[2] : 0.0f, n > 3 ? x[3] : 0.0f),
            make_float4(n > 4 ? x[4] : 0.0f, n > 5 ? x[5] : 0.0f, n > 6 ? x[6] : 0.0f, n > 7 ? x[7] : 0.0f)};
}
__device__ __forceinline__ Eight<unsigned short> fetch8(const unsigned short* row, int first, int c) {
    const unsigned short* x = row + first;
    int n = c - first;
    if (c % 8 == 0) return {n > 0 ? *(const uint4*)x : make_uint4(0, 0, 0, 0)};
    unsigned int pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        pairs[i] = (n > 2 * i ? x[2 * i] : 0u) | (n > 2 * i + 1 ? (unsigned int)x[2 * i + 1] << 16 : 0u);
    return {make_uint4(pairs[0], pairs[1], pairs[2], pairs[3])};
}

__device__ __forceinline__ void unpack(float (&to)[8], Eight<float> x) {
    to[0] = x.low.x, to[1] = x.low.y, to[2] = x.low.z, to[3] = x.low.w;
    to[4] = x.high.x, to[5] = x.high.y, to[6] = x.high.z, to[7] = x.high.w;
}
__device__ __forceinline__ void unpack(float (&to)[8], Eight<unsigned short> x) {
    unsigned int pairs[4] = {x.pairs.x, x.pairs.y, x.pairs.z, x.pairs.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(pairs[i] << 16);
        to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

template <class T> __device__ __forceinline__ void load8(float (&to)[8], const T* row, int first, int c) {
    unpack(to, fetch8(row, first, c));
}

__device__ __forceinline__ void put8(float* to, const float (&x)[8]) {
    put4(to, make_float4(x[0], x[1], x[2], x[3]));
    put4(to + 4, make_float4(x[4], x[5], x[6], x[7]));
}
__device__ __forceinline__ void put8(unsigned short* to, const float (&x)[8]) {
    unsigned int pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = to_bf16(x[2 * i]) | (unsigned int)to_bf16(x[2 * i + 1]) << 16;
    *(uint4*)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// The columns of `load8`, written as far as the row has them.
template <class T> __device__ __forceinline__ void store8(T* row, int first, int c, const float (&x)[8]) {
    if (c % 8 == 0) {
        if (first < c) put8(row + first, x);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++)
            if (first + e < c) put(row + first + e, x[e]);
    }
}
