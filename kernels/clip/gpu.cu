// Clipping by the global norm: one block for a few dozen numbers, because the host need not wait for them then.

extern "C" __global__ void clip(
    float* scale, double* norm, const double* totals, const float* losses, double most, int groups, int examples) {
    double sum = 0.0;
    for (int i = 0; i < groups; i++) sum += totals[i];  // in each thread the same
    double length = sqrt(sum);
    bool unsound = !isfinite(length) || isnan(scale[0]);
    for (int i = threadIdx.x; i < examples; i += blockDim.x) unsound |= !isfinite(losses[i]);
    unsound = __syncthreads_or(unsound);
    if (threadIdx.x) return;
    norm[0] = length;
    scale[0] = unsound ? __int_as_float(0x7fffffff) : (float)(most / fmax(length, most));
}
