// GELU and its slope, Google's first code by tanh, the paper's by erf: gelu.py has the formulas, the fits and their errors.
// By erff and tanhf an element would take more instructions than a card has time for while it moves the element's bytes.
#include "power.cuh"
#define ROOT 1.5957691216f  // slope of 2 s at 0
#define CUBIC 0.044715f
#define DENSITY 0.3989422804f

template <int N> __device__ __forceinline__ float polynomial(float x, const float (&coefficients)[N]) {
    float y = coefficients[0];
#pragma unroll
    for (int i = 1; i < N; i++) y = y * x + coefficients[i];
    return y;
}

// e^(-2 s(a)): the odds against a, whose share is the sigmoid of 2 s(a).
__device__ __forceinline__ float tanh_odds(float a) {
    return power_of_2(-LOG2E * ROOT * (a + CUBIC * a * a * a));
}

template <bool TANH> __device__ __forceinline__ float gelu(float h) {
    const float l[] = {-1.2479244e-06f, 1.8463352e-05f, -8.5541695e-05f, -0.00020527613f, 0.0050504375f,
                       -0.036506094f,   -0.31825247f,   -0.79789305f,    -0.69314688f};
    float a = fabsf(h), below;  // the share of a that -a keeps
    if (TANH) {
        float odds = tanh_odds(a);
        below = __fdividef(odds, 1.0f + odds);
    } else {
        below = power_of_2(LOG2E * polynomial(a, l));
    }
    return fmaxf(h, 0.0f) - a * below;
}

// GELU and its slope from one exponential.
template <bool TANH> __device__ __forceinline__ float2 gelu_and_slope(float h) {
    const float p[] = {1.6316903e-06f, -3.5207791e-05f, 0.0003397385f, -0.0019746276f, 0.0079393908f, -0.02431393f,
                       0.061154887f,   -0.13251379f,    0.24991679f,   -0.7978788f,    0.49999994f};
    float a = fabsf(h) > 14.0f ? 14.0f : fabsf(h), below, d;  // further out powers of a would be infinite; NaN stays
    if (TANH) {
        float odds = tanh_odds(a), high = __fdividef(1.0f, 1.0f + odds);
        below = odds * high;
        d = below - a * (high * below) * (ROOT + 3.0f * CUBIC * ROOT * a * a);
    } else {
        float e = power_of_2(-0.5f * LOG2E * a * a), q = polynomial(a, p);
        below = e * (a * DENSITY + q);
        d = e * q;
    }
    return make_float2(fmaxf(h, 0.0f) - a * below, h < 0.0f ? d : 1.0f - d);
}
