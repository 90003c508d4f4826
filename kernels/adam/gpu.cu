// Adam: one pass, four elements a thread; 28 bytes move an element, and 2 more for the copy in bf16 that products take,
// where there is one.
#include "storage.cuh"

struct Rule {
    float scale, lr, keep1, new1, keep2, new2, eps, decay, unbias1, unbias2;

    __device__ __forceinline__ void update(float& p, float& m, float& v, float g) const {
        g *= scale;
        m = keep1 * m + new1 * g;
        v = keep2 * v + new2 * (g * g);
        p -= lr * (m * unbias1 / (sqrtf(v * unbias2) + eps) + decay * p);
    }
};

extern "C" __global__ void update(
    float* p, float* m, float* v, const float* g, unsigned short* copy, const float* scale, float lr, float keep1,
    float new1, float keep2, float new2, float eps, float decay, float unbias1, float unbias2, long long n) {
    Rule rule = {*scale, lr, keep1, new1, keep2, new2, eps, decay, unbias1, unbias2};
    long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 4 <= n && aligned(p) && aligned(m) && aligned(v) && aligned(g) && (size_t)copy % 8 == 0) {
        float4 p4 = load4(p + i), m4 = load4(m + i), v4 = load4(v + i), g4 = load4(g + i);
        if (isnan(rule.scale)) return;  // asked here, so that the loads above need not wait for it
        rule.update(p4.x, m4.x, v4.x, g4.x);
        rule.update(p4.y, m4.y, v4.y, g4.y);
        rule.update(p4.z, m4.z, v4.z, g4.z);
        rule.update(p4.w, m4.w, v4.w, g4.w);
        put4(p + i, p4);
        if (copy) put4(copy + i, p4);
        put4(m + i, m4);
        put4(v + i, v4);
    } else if (!isnan(rule.scale)) {
        for (long long end = min(i + 4, n); i < end; i++) {
            rule.update(p[i], m[i], v[i], g[i]);
            if (copy) put(copy + i, p[i]);
        }
    }
}
