// Attention in plain fp32, any head size, both types of storage: what cards without bf16 tensor cores use, and the twin
// that gpu_bf16.cu is tested against.
//
// A block has ROWS queries of a sequence (or keys, for dk and dv), a head and COLUMNS columns of the result; it takes
// the other side OTHERS at a time and D in pieces of DEPTH. Each product is 64 x 32 or 64 x 64, of operands that lie in
// shared memory with the summed dimension first: a thread has 4 x 4 elements of the scores, those of two calls of
// Philox, and 4 x 8 of a result. With D > COLUMNS scores are computed once a block of columns. Shared memory is 30 KB,
// 38 KB in backward, registers are about 160 and 220: two blocks, 8 warps, on a multiprocessor. Arithmetic is what
// limits it: of each side 8 KB are fetched for 64 x 32 x 64 x 2 multiplications and additions, or more.
#include "storage.cuh"
#include "philox.cuh"
#include "attention.cuh"

#define ROWS 64
#define OTHERS 32
#define DEPTH 32
#define COLUMNS 64
#define THREADS 128

// Where a thread is: its rows are row + 8 i for i < 4, its others other + (0, 1, 8, 9), its columns column + (0 to 3)
// and column + 32 + (0 to 3). The eight threads that share rows are neighbours.
struct Place {
    int row, other, column;
    __device__ __forceinline__ Place() {
        int down = threadIdx.x / 8, across = threadIdx.x % 8;
        row = down / 8 * 32 + down % 8, other = across / 4 * 16 + across % 4 * 2, column = across * 4;
    }
    __device__ __forceinline__ int row_at(int i) const { return row + 8 * i; }
    __device__ __forceinline__ int other_at(int j) const { return other + (j & 1) + (j >> 1) * 8; }
    __device__ __forceinline__ int column_at(int j) const { return column + (j & 3) + (j >> 2) * 32; }
};

// A head's columns of one of the matrices side by side in an array, from a row on.
struct Matrix {
    const storage* data;
    int stride, rows;
};

struct Room {
    float kept[DEPTH][ROWS + 1], others[DEPTH][OTHERS + 2];  // pieces of operands, transposed
};

template <int WIDTH, int PADDED>
__device__ __forceinline__ void fill_transposed(float (*to)[PADDED], const Matrix& from, int depth, int d) {
#pragma unroll 4
    for (int i = threadIdx.x; i < WIDTH * DEPTH; i += THREADS) {
        int row = i / DEPTH, at = i % DEPTH;
        bool there = row < from.rows && depth + at < d;
        to[at][row] = there ? to_float(from.data[(size_t)row * from.stride + depth + at]) : 0.0f;
    }
}

// scores = kept others^T, over all of D; zeros beyond the rows that there are.
__device__ __forceinline__ void multiply_rows(
    float (&scores)[4][4], Room& room, const Place& at, const Matrix& kept, const Matrix& others, int d) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) scores[i][j] = 0.0f;
    for (int depth = 0; depth < d; depth += DEPTH) {
        __syncthreads();
        fill_transposed<ROWS>(room.kept, kept, depth, d);
        fill_transposed<OTHERS>(room.others, others, depth, d);
        __syncthreads();
        for (int k = 0; k < DEPTH; k += 8)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float eight = 0.0f;  // is added whole: an eighth of the sum's roundings
#pragma unroll
                    for (int l = k; l < k + 8; l++)
                        eight = fmaf(room.kept[l][at.row_at(i)], room.others[l][at.other_at(j)], eight);
                    scores[i][j] += eight;
                }
    }
}

typedef float Weights[OTHERS][ROWS + 1];    // a product's left operand, transposed
typedef float Operand[OTHERS][COLUMNS + 4];  // its right one, in shared memory at a multiple of 16 bytes

__device__ __forceinline__ void fill(Operand& to, const Matrix& from, int column, int d) {
#pragma unroll 4
    for (int i = threadIdx.x; i < OTHERS * COLUMNS; i += THREADS) {
        int row = i / COLUMNS, at = i % COLUMNS;
        bool there = row < from.rows && column + at < d;
        to[row][at] = there ? to_float(from.data[(size_t)row * from.stride + column + at]) : 0.0f;
    }
}

// sums += weights operand
__device__ __forceinline__ void add_product(
    float (&sums)[4][8], const Weights& weights, const Operand& operand, const Place& at) {
#pragma unroll 1
    for (int k = 0; k < OTHERS; k++) {
        float4 low = *(const float4*)&operand[k][at.column], high = *(const float4*)&operand[k][at.column + 32];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float w = weights[k][at.row_at(i)];
            sums[i][0] += w * low.x, sums[i][1] += w * low.y, sums[i][2] += w * low.z, sums[i][3] += w * low.w;
            sums[i][4] += w * high.x, sums[i][5] += w * high.y, sums[i][6] += w * high.z, sums[i][7] += w * high.w;
        }
    }
}

__device__ __forceinline__ void put_result(
    storage* to, size_t stride, const float (&sums)[4][8], const Place& at, int rows, int column, int d) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 8; j++)
            if (at.row_at(i) < rows && column + at.column_at(j) < d)
                put(to + at.row_at(i) * stride + column + at.column_at(j), sums[i][j]);
}

// Over the eight threads that share rows.
__device__ __forceinline__ float row_sum(float x) {
    for (int distance = 4; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
    for (int distance = 4; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) forward(
    storage* y, float* lse, const storage* qkv, const int* offsets, const int* examples, int sequences, int heads,
    int d, unsigned int threshold, float scale, unsigned long long seed, unsigned int stream) {
    __shared__ Room room;
    __shared__ Weights p;
    __shared__ __align__(16) Operand v;
    Share share = share_of(offsets, sequences, blockIdx.x, ROWS);
    int rows = share.rows(ROWS), head = blockIdx.y, column = blockIdx.z * COLUMNS, c = heads * d;
    if (rows <= 0) return;
    Mask mask({threshold, scale, seed, stream}, head, examples[share.first]);
    Place at;
    float root = 1.0f / sqrtf((float)d);
    const storage* of_head = qkv + (size_t)share.first * 3 * c + head * d;
    Matrix queries = {of_head + (size_t)share.begin * 3 * c, 3 * c, rows};

    float sums[4][8] = {}, highest[4], total[4] = {};
    for (int i = 0; i < 4; i++) highest[i] = LOWEST;
    for (int start = 0; start < share.length; start += OTHERS) {
        int keys = min(OTHERS, share.length - start);
        const storage* there = of_head + (size_t)start * 3 * c;
        float s[4][4];
        multiply_rows(s, room, at, queries, {there + c, 3 * c, keys}, d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float top = LOWEST, sum = 0.0f;
            for (int j = 0; j < 4; j++) {
                s[i][j] = at.other_at(j) < keys ? s[i][j] * root : LOWEST;
                top = fmaxf(top, s[i][j]);
            }
            top = fmaxf(row_max(top), highest[i]);
            float before = expf(highest[i] - top);
            highest[i] = top;
            for (int j = 0; j < 4; j++) sum += s[i][j] = expf(s[i][j] - top);
            total[i] = total[i] * before + row_sum(sum);
            for (int j = 0; j < 8; j++) sums[i][j] *= before;
        }
        uint4 words;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (mask.drops() && !(i & 1))
                words = mask.words(share.begin + at.row_at(i), start + at.other);
            for (int j = 0; j < 4; j++) {
                bool kept = !mask.drops() || mask.keeps(words, (i & 1) + (j & 2), j & 1);
                p[at.other_at(j)][at.row_at(i)] = kept ? s[i][j] : 0.0f;
            }
        }
        fill(v, {there + 2 * c, 3 * c, keys}, column, d);
        __syncthreads();
        add_product(sums, p, v, at);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 8; j++) sums[i][j] *= scale / total[i];
    size_t first = (size_t)share.first + share.begin;
    put_result(y + first * c + head * d, c, sums, at, rows, column, d);
    for (int i = 0; i < 4; i++)
        if (column == 0 && at.column == 0 && at.row_at(i) < rows)
            lse[(first + at.row_at(i)) * heads + head] = highest[i] + logf(total[i]);
}

// dq, and to `moments` (T, H) each row's sum of p dp. Of dy y, that sum is as wrong as y is rounded, by more than any
// ds where values are far from zero; so ds is taken against it, which leaves the sum of p (dp - dy y) to be taken off:
// dq = sum of p (dp - dy y) k - (sum of p (dp - dy y)) (sum of p k), all of it in one pass over the keys.
extern "C" __global__ void __launch_bounds__(THREADS, 2) backward_queries(
    storage* dqkv, float* moments, const storage* dy, const storage* y, const float* lse, const storage* qkv,
    const int* offsets, const int* examples, int sequences, int heads, int d, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream) {
    __shared__ Room room;
    __shared__ Weights p, ds;
    __shared__ __align__(16) Operand k;
    Share share = share_of(offsets, sequences, blockIdx.x, ROWS);
    int rows = share.rows(ROWS), head = blockIdx.y, column = blockIdx.z * COLUMNS, c = heads * d;
    if (rows <= 0) return;
    Mask mask({threshold, scale, seed, stream}, head, examples[share.first]);
    Place at;
    float root = 1.0f / sqrtf((float)d);
    const storage* of_head = qkv + (size_t)share.first * 3 * c + head * d;
    size_t first = (size_t)share.first + share.begin, of_y = first * c + head * d;
    Matrix queries = {of_head + (size_t)share.begin * 3 * c, 3 * c, rows}, gradients = {dy + of_y, c, rows};

    float sums[4][8] = {}, of_keys[4][8] = {}, logarithm[4], moment[4], more[4] = {};
    for (int i = 0; i < 4; i++) {
        bool there = at.row_at(i) < rows;
        float sum = 0.0f;
        for (int j = threadIdx.x % 8; there && j < d; j += 8)
            sum += to_float(dy[of_y + (size_t)at.row_at(i) * c + j]) * to_float(y[of_y + (size_t)at.row_at(i) * c + j]);
        moment[i] = row_sum(sum);
        logarithm[i] = there ? lse[(first + at.row_at(i)) * heads + head] : 0.0f;
    }
    for (int start = 0; start < share.length; start += OTHERS) {
        int keys = min(OTHERS, share.length - start);
        const storage* there = of_head + (size_t)start * 3 * c;
        float s[4][4], dp[4][4];
        multiply_rows(s, room, at, queries, {there + c, 3 * c, keys}, d);
        multiply_rows(dp, room, at, gradients, {there + 2 * c, 3 * c, keys}, d);
        uint4 words;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (mask.drops() && !(i & 1))
                words = mask.words(share.begin + at.row_at(i), start + at.other);
            for (int j = 0; j < 4; j++) {
                bool kept = !mask.drops() || mask.keeps(words, (i & 1) + (j & 2), j & 1);
                float e = at.other_at(j) < keys ? expf(__fmul_rn(s[i][j], root) - logarithm[i]) : 0.0f;
                float slope = e * ((kept ? dp[i][j] * scale : 0.0f) - moment[i]);
                more[i] += slope;
                p[at.other_at(j)][at.row_at(i)] = e;
                ds[at.other_at(j)][at.row_at(i)] = slope;
            }
        }
        fill(k, {there + c, 3 * c, keys}, column, d);
        __syncthreads();
        add_product(sums, ds, k, at);
        add_product(of_keys, p, k, at);
    }
    for (int i = 0; i < 4; i++) {
        more[i] = row_sum(more[i]);
        for (int j = 0; j < 8; j++) sums[i][j] = (sums[i][j] - more[i] * of_keys[i][j]) * root;
        if (column == 0 && at.column == 0 && at.row_at(i) < rows)
            moments[(first + at.row_at(i)) * heads + head] = moment[i] + more[i];
    }
    put_result(dqkv + first * 3 * c + head * d, 3 * c, sums, at, rows, column, d);
}

// dk and dv: scores stand the other way round, keys before queries.
extern "C" __global__ void __launch_bounds__(THREADS, 2) backward_keys(
    storage* dqkv, const float* moments, const storage* dy, const float* lse, const storage* qkv, const int* offsets,
    const int* examples, int sequences, int heads, int d, unsigned int threshold, float scale, unsigned long long seed,
    unsigned int stream) {
    __shared__ Room room;
    __shared__ Weights p, ds;
    __shared__ __align__(16) Operand operand;
    Share share = share_of(offsets, sequences, blockIdx.x, ROWS);
    int rows = share.rows(ROWS), head = blockIdx.y, column = blockIdx.z * COLUMNS, c = heads * d;
    if (rows <= 0) return;
    Mask mask({threshold, scale, seed, stream}, head, examples[share.first]);
    Place at;
    float root = 1.0f / sqrtf((float)d);
    const storage* of_head = qkv + (size_t)share.first * 3 * c + head * d;
    const storage* own = of_head + (size_t)share.begin * 3 * c;

    float dk[4][8] = {}, dv[4][8] = {};
    for (int start = 0; start < share.length; start += OTHERS) {
        int count = min(OTHERS, share.length - start);
        size_t first = (size_t)share.first + start;
        Matrix queries = {of_head + (size_t)start * 3 * c, 3 * c, count};
        Matrix gradients = {dy + first * c + head * d, c, count};
        float s[4][4], dp[4][4];
        multiply_rows(s, room, at, {own + c, 3 * c, rows}, queries, d);
        multiply_rows(dp, room, at, {own + 2 * c, 3 * c, rows}, gradients, d);
        float logarithm[4], moment[4];
        for (int j = 0; j < 4; j++) {
            size_t query = (first + at.other_at(j)) * heads + head;
            logarithm[j] = at.other_at(j) < count ? lse[query] : 0.0f;
            moment[j] = at.other_at(j) < count ? moments[query] : 0.0f;
        }
#pragma unroll
        for (int call = 0; call < 4; call++) {  // of Philox: its words are of rows i and i + 1, others j and j + 2
            int i0 = call / 2 * 2, j0 = call % 2, key = share.begin + at.row_at(i0);
            uint4 words;
            if (mask.drops()) words = mask.words(start + at.other_at(j0), key);
            for (int element = 0; element < 4; element++) {
                int i = i0 + (element & 1), j = j0 + (element & 2);
                bool there = at.other_at(j) < count;
                bool kept = !mask.drops() || mask.keeps(words, (j >> 1) + 2 * (i & 1), key & 1);
                float e = there ? expf(__fmul_rn(s[i][j], root) - logarithm[j]) : 0.0f;
                p[at.other_at(j)][at.row_at(i)] = kept ? e : 0.0f;
                ds[at.other_at(j)][at.row_at(i)] = e * ((kept ? dp[i][j] * scale : 0.0f) - moment[j]);
            }
        }
        fill(operand, queries, column, d);
        __syncthreads();
        add_product(dk, ds, operand, at);
        __syncthreads();
        fill(operand, gradients, column, d);
        __syncthreads();
        add_product(dv, p, operand, at);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 8; j++) dk[i][j] *= root, dv[i][j] *= scale;
    storage* to = dqkv + ((size_t)share.first + share.begin) * 3 * c + head * d;
    put_result(to + c, 3 * c, dk, at, rows, column, d);
    put_result(to + 2 * c, 3 * c, dv, at, rows, column, d);
}
