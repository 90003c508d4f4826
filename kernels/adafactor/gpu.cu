// Adafactor: g is read for its squares, once more for the length of the update, and once more to move p: 20 bytes move an
// element. Blocks have COLUMNS columns, four a lane, and rows that their warps share; what they sum is added in order.
#include "storage.cuh"
#include "reduce.cuh"
#define COLUMNS 128
#define ROWS 64         // of a block of squares and move
#define LONG_ROWS 256   // of one of lengths, of which each block of move adds up all sums
#define WARPS 8         // of those three
#define FINISH_WARPS 16 // these five as in gpu.py

// A lane's four columns of a matrix, by 16 bytes where all of its rows begin at a multiple of that.
struct Columns {
    int first, c;
    bool vectors;

    __device__ __forceinline__ Columns(const float* a, const float* b, int c)
        : first(blockIdx.x * COLUMNS + 4 * (threadIdx.x % 32)), c(c), vectors(c % 4 == 0 && aligned(a) && aligned(b)) {}

    __device__ __forceinline__ float4 load(const float* row) const {  // zeros past the row's end
        const float* x = row + first;
        int n = c - first;
        if (vectors && n > 0) return load4(x);
        return make_float4(n > 0 ? x[0] : 0.0f, n > 1 ? x[1] : 0.0f, n > 2 ? x[2] : 0.0f, n > 3 ? x[3] : 0.0f);
    }
    __device__ __forceinline__ void store(float* row, float4 x) const {
        int n = c - first;
        if (vectors && n > 0) return put4(row + first, x);
        if (n > 0) row[first] = x.x;
        if (n > 1) row[first + 1] = x.y;
        if (n > 2) row[first + 2] = x.z;
        if (n > 3) row[first + 3] = x.w;
    }
};

__device__ __forceinline__ float4 squared(float4 x, float4 factors) {
    x = make_float4(x.x * factors.x, x.y * factors.y, x.z * factors.z, x.w * factors.w);
    return make_float4(x.x * x.x, x.y * x.y, x.z * x.z, x.w * x.w);
}

// What the update is multiplied by where the sum of u^2 over an array of `size` elements is `length`.
__device__ __forceinline__ float clipped(float lr, float clip, double length, double size) {
    return lr / fmaxf(1.0f, (float)sqrt(length / size) / clip);
}

// All of it in one launch by one block for a matrix of one row, whose factor is 1: of a model's arrays most are vectors.
extern "C" __global__ void __launch_bounds__(1024) update_vector(
    float* p, float* rows, float* columns, const float* g, const float* clipping, float lr, float keep, float fresh, float eps,
    float clip, float decay, int c) {
    __shared__ double room[32];
    float scale = *clipping;
    if (isnan(scale)) return;
    double sum = 0.0, length = 0.0;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float gradient = g[i] * scale, moved = keep * columns[i] + fresh * (gradient * gradient + eps);
        float u = gradient / sqrtf(moved);
        columns[i] = moved;
        sum += gradient * gradient;
        length += u * u;
    }
    sum = block_sum(sum, room);
    length = block_sum(length, room);
    if (threadIdx.x == 0) rows[0] = keep * rows[0] + fresh * ((float)(sum / c) + eps);
    float rate = scale * clipped(lr, clip, length, c);
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        p[i] -= rate * g[i] / sqrtf(columns[i]) + decay * p[i];
    }
}

// Sums of g'^2: row_sums (column blocks, f) over a block's columns, column_sums (row blocks, c) over its rows.
extern "C" __global__ void __launch_bounds__(32 * WARPS) squares(
    float* row_sums, float* column_sums, const float* g, const float* clipping, int f, int c) {
    __shared__ __align__(16) float sums[WARPS][COLUMNS];
    Columns columns(g, g, c);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, end = min((int)(blockIdx.y + 1) * ROWS, f);
    float scale = *clipping;
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f), scales = make_float4(scale, scale, scale, scale);
#pragma unroll 4
    for (int row = blockIdx.y * ROWS + warp; row < end; row += WARPS) {
        float4 x = squared(columns.load(g + (size_t)row * c), scales);
        total = make_float4(total.x + x.x, total.y + x.y, total.z + x.z, total.w + x.w);
        float sum = warp_sum(x.x + x.y + x.z + x.w);
        if (lane == 0) row_sums[(size_t)blockIdx.x * f + row] = sum;
    }
    put4(&sums[warp][4 * lane], total);
    __syncthreads();
    int column = blockIdx.x * COLUMNS + threadIdx.x;
    if (threadIdx.x >= COLUMNS || column >= c) return;
    float sum = 0.0f;
    for (int other = 0; other < WARPS; other++) sum += sums[other][threadIdx.x];
    column_sums[(size_t)blockIdx.y * c + column] = sum;
}

// The first blocks move columns, 32 each, and leave 1 / their roots in factors; the others move rows, a thread each, and
// leave their sums in rows_total, one a block.
extern "C" __global__ void __launch_bounds__(32 * FINISH_WARPS) finish(
    float* rows, float* columns, float* factors, double* rows_total, const float* row_sums, const float* column_sums,
    const float* clipping, float keep, float fresh, float eps, int f, int c) {
    __shared__ double room[32];
    __shared__ float sums[FINISH_WARPS][32];
    if (isnan(*clipping)) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column_blocks = (c + 31) / 32;
    if (blockIdx.x < column_blocks) {
        int column = blockIdx.x * 32 + lane;
        float sum = 0.0f;
        if (column < c) {
#pragma unroll 4
            for (int i = warp; i < (f + ROWS - 1) / ROWS; i += FINISH_WARPS) sum += column_sums[(size_t)i * c + column];
        }
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp || column >= c) return;
        for (int other = 1; other < FINISH_WARPS; other++) sum += sums[other][lane];
        float moved = keep * columns[column] + fresh * (sum / f + eps);
        columns[column] = moved;
        factors[column] = 1.0f / sqrtf(moved);
    } else {
        int block = blockIdx.x - column_blocks, row = block * blockDim.x + threadIdx.x;
        float sum = 0.0f, moved = 0.0f;
        if (row < f) {
            for (int i = 0; i < (c + COLUMNS - 1) / COLUMNS; i++) sum += row_sums[(size_t)i * f + row];
            moved = keep * rows[row] + fresh * (sum / c + eps);
            rows[row] = moved;
        }
        double total = block_sum((double)moved, room);
        if (threadIdx.x == 0) rows_total[block] = total;
    }
}

// The sum of a few numbers, the same in every thread and block.
__device__ __forceinline__ double sum_of(const double* x, int count, double* room) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += x[i];
    return block_sum(sum, room);
}

__device__ __forceinline__ float mean_of_rows(const double* rows_total, int f, double* room) {
    return (float)(sum_of(rows_total, (f + 32 * FINISH_WARPS - 1) / (32 * FINISH_WARPS), room) / f);
}

// lengths (row blocks, column blocks): sums of u^2
extern "C" __global__ void __launch_bounds__(32 * WARPS) lengths(
    double* lengths, const float* g, const float* rows, const float* factors, const double* rows_total,
    const float* clipping, int f, int c) {
    __shared__ double room[32];
    Columns columns(g, factors, c);
    float mean = mean_of_rows(rows_total, f, room), scale = *clipping;
    int end = min((int)(blockIdx.y + 1) * LONG_ROWS, f);
    float4 shares = columns.load(factors);
    shares = make_float4(shares.x * scale, shares.y * scale, shares.z * scale, shares.w * scale);
    double total = 0.0;
#pragma unroll 4
    for (int row = blockIdx.y * LONG_ROWS + threadIdx.x / 32; row < end; row += WARPS) {
        float4 x = squared(columns.load(g + (size_t)row * c), shares);
        total += (double)(x.x + x.y + x.z + x.w) * (mean / rows[row]);
    }
    total = block_sum(total, room);
    if (threadIdx.x == 0) lengths[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) move(
    float* p, const float* g, const float* rows, const float* factors, const double* rows_total, const double* lengths,
    const float* clipping, float lr, float clip, float decay, int f, int c) {
    __shared__ double room[32];
    float scale = *clipping;
    if (isnan(scale)) return;
    Columns columns(p, g, c);
    float mean = mean_of_rows(rows_total, f, room);
    double length = sum_of(lengths, (f + LONG_ROWS - 1) / LONG_ROWS * gridDim.x, room);
    float rate = scale * clipped(lr, clip, length, (double)f * c);
    float4 shares = Columns(factors, factors, c).load(factors);
    int end = min((int)(blockIdx.y + 1) * ROWS, f);
#pragma unroll 2
    for (int row = blockIdx.y * ROWS + threadIdx.x / 32; row < end; row += WARPS) {
        size_t at = (size_t)row * c;
        float step = rate * sqrtf(mean / rows[row]);
        float4 to = columns.load(p + at), by = columns.load(g + at);
        to.x -= step * by.x * shares.x + decay * to.x;
        to.y -= step * by.y * shares.y + decay * to.y;
        to.z -= step * by.z * shares.z + decay * to.z;
        to.w -= step * by.w * shares.w + decay * to.w;
        columns.store(p + at, to);
    }
}
