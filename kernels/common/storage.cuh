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
