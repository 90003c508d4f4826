// GELU and its slope, Google's first code by tanh, the paper's by erf: kernels/bias_gelu/reference.py.
__device__ __forceinline__ float gelu_share(float h, bool tanh) {  // what h is multiplied by
    return tanh ? 0.5f + 0.5f * tanhf(0.7978845608f * (h + 0.044715f * h * h * h)) : 0.5f + 0.5f * erff(h * 0.7071067812f);
}

__device__ __forceinline__ float gelu(float h, bool tanh) { return h * gelu_share(h, tanh); }

__device__ __forceinline__ float gelu_slope(float h, bool tanh) {
    float p = gelu_share(h, tanh);
    h = h > 14.0f ? 14.0f : h < -14.0f ? -14.0f : h;  // the density is 0 here, and no power of h infinite
    float density = tanh ? 2.0f * p * (1.0f - p) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * h * h)
                         : 0.3989422804f * expf(-0.5f * h * h);
    return p + h * density;
}
