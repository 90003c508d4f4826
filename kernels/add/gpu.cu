// y = a + b; y may be a or b. Four elements a thread where there are four.
#include "storage.cuh"

extern "C" __global__ void add(storage* y, const storage* a, const storage* b, long long size) {
    long long at = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (at + 4 <= size) {
        float4 p = load4(a + at), q = load4(b + at);
        put4(y + at, make_float4(p.x + q.x, p.y + q.y, p.z + q.z, p.w + q.w));
    } else {
        for (; at < size; at++) put(y + at, to_float(a[at]) + to_float(b[at]));
    }
}
