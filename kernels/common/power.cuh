#define LOG2E 1.4426950409f

// 2 to the x, to two units in the last place; 0 from minus infinity to -126, below which results would be denormal.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef EMULATED
    return x < -126.0f ? 0.0f : exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
