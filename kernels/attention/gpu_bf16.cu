// Attention on tensor cores (common/tensor.cuh): bf16 in, fp32 sums, statistics and exponentials; D = 64 and 32.
//
// A warp keeps 32 queries (forward) or 16 queries or keys (backward) of one sequence and head in registers, as the left
// operand, and a block's warps share the other side: tiles of TILE rows in shared memory, in two stages, so that one is
// on its way (cp.async) while the other is multiplied, with one barrier a tile. What is kept comes through the second.
// Scores never leave registers: two tiles of sums side by side are the next product's left operand, and what one thread
// has of them are the elements of one call of Philox.
//
// Backward is two kernels, so that nothing is added by two blocks: 4 products for dq, 4 for dk and dv; the convention
// counts 5. A row is read and written once but for the tiles' side, which comes again, from the L2 cache, for each
// block of 128 queries (64 rows in backward): forward moves 8 C bytes a token, the two of backward 12 C each.
//
// Compiled for sm_80, sm_90a and sm_100, no spills:
//
//                     registers      shared memory   blocks of 128, warps of 64 on a multiprocessor
//     forward_64      255 252 247    32 KB           2, 8 (of 64 threads, for short sequences: 4, 8)
//     queries_64      168 163 167    32 KB           3, 12
//     keys_64         168 168 168    33 KB           3, 12
//     forward_32      225 229 210    16 KB           2, 8
//     queries_32      130 132 149    16 KB           3, 12
//     keys_32         140 144 159    17 KB           3, 12
//
// What to expect, by sm_90a's code and not by measurement: without dropout a warp issues some 670 instructions for a
// tile of forward_64, of which 128 are products and 64 exponentials. At the 4 to 6.5 cycles that a product takes and
// the 8 of an exponential each unit is busy for 510 to 830, so 30 to 40 % of a Hopper's peak by wgmma; Philox adds 600.
#include "storage.cuh"
#include "philox.cuh"
#include "attention.cuh"
#include "tensor.cuh"
#include "shared.cuh"

#define TILE 64
#define PART 16  // of a tile, at a time in backward: with more, the registers would hold two blocks, not three
#define SLACK 8.0f

#ifdef TENSOR_CORES

// Starts the copies of two matrices' next TILE rows into one of the two stages.
template <int D>
__device__ __forceinline__ void fetch_both(
    bf16* stage, const bf16* a, size_t a_stride, const bf16* b, size_t b_stride, int there) {
    fetch<D>(stage, a, a_stride, there, TILE);
    fetch<D>(stage + TILE * D, b, b_stride, there, TILE);
}

// The sum of a row's elements of a times those of b, as far as a lane's chunks go: every fourth.
template <int D> __device__ __forceinline__ float quarter_of_product(const bf16* a, const bf16* b) {
    float sum = 0.0f;
#pragma unroll
    for (int chunk = threadIdx.x % 4; chunk < D / 8; chunk += 4) {
        float x[8], y[8];
        load8(x, a, 8 * chunk, D);
        load8(y, b, 8 * chunk, D);
#pragma unroll
        for (int e = 0; e < 8; e++) sum += x[e] * y[e];
    }
    return sum;
}

// Starts the copies of TILE queries' statistics, a number per row and head: lse, then the sums of p dp. 2 TILE threads.
__device__ __forceinline__ void fetch_statistics(
    float* to, const float* lse, const float* moments, size_t at, int heads, int there) {
    int row = threadIdx.x % TILE;
    const float* from = threadIdx.x < TILE ? lse : moments;
    copy_async<4>(to + threadIdx.x, from + at + row * heads, row < there);
}

// Sets the scores of keys that are not there; `there` are, counted from a lane's first.
template <int M, int N> __device__ __forceinline__ void exclude(float (&s)[M][N / 8][4], int there) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (8 * n + e % 2 >= there) s[m][n][e] = LOWEST;
}

// Scores to exponentials of their distance from `highest`, and these to `total`, a lane's own part. The highest score
// so far need not be met exactly: only where one is more than SLACK powers of two above, are the sums taken down to it.
template <int D>
__device__ __forceinline__ void exponentiate(
    float (&s)[2][TILE / 8][4], float (&sums)[2][D / 8][4], float (&highest)[2][2], float (&total)[2][2], float steep) {
    float top[2][2];
    bool far = false;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[m][half] = highest[m][half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
                top[m][half] = fmaxf(top[m][half], fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            far = far || (top[m][half] - highest[m][half]) * steep > SLACK;
        }
    if (__any_sync(0xffffffffu, far))
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float reached = quad_max(top[m][half]), factor = power_of_2((highest[m][half] - reached) * steep);
                highest[m][half] = reached;
                total[m][half] *= factor;
#pragma unroll
                for (int n = 0; n < D / 8; n++) sums[m][n][2 * half] *= factor, sums[m][n][2 * half + 1] *= factor;
            }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float least = highest[m][half] * steep;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    total[m][half] += s[m][n][e] = power_of_2(s[m][n][e] * steep - least);
        }
}

// Sets to zero what dropout does not keep; `query` and `key` are a lane's first.
__device__ __forceinline__ void drop(float (&p)[2][TILE / 8][4], const Mask& mask, int query, int key) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
            uint4 words = mask.words(query + 16 * m, key + 16 * n);
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (!mask.keeps(words, e / 2, e % 2)) p[m][2 * n + e / 4][e % 4] = 0.0f;
        }
}

template <int D>
__device__ __forceinline__ void attend(
    bf16* y, float* lse, const bf16* qkv, const int* offsets, const int* examples, int sequences, int heads,
    const Dropout& dropout) {
    DYNAMIC_SHARED(bf16, room);
    bf16* second = room + 2 * TILE * D;  // stage
    int most = blockDim.x, head = blockIdx.y, c = heads * D, stride = 3 * c;
    Share share = share_of(offsets, sequences, blockIdx.x, most);
    int rows = share.rows(most);
    if (rows <= 0) return;
    Mask mask(dropout, head, examples[share.first]);
    const bf16* q = qkv + (size_t)share.first * stride + head * D;
    fetch<D>(second, q + (size_t)share.begin * stride, stride, rows, most);
    fetch_both<D>(room, q + c, stride, q + 2 * c, stride, share.length);

    int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 32, column = 2 * (lane % 4);
    int query = share.begin + own + lane / 4;
    float root = rsqrtf((float)D), steep = root * LOG2E;
    unsigned int queries[2][D / 16][4];
    float sums[2][D / 8][4] = {}, highest[2][2], total[2][2] = {};
    highest[0][0] = highest[0][1] = highest[1][0] = highest[1][1] = LOWEST;

    for (int start = 0; start < share.length; start += TILE) {
        copies_done();
        __syncthreads();
        if (start == 0) {
            for (int m = 0; m < 2; m++) load_left<D>(queries[m], second, own + 16 * m);
            __syncthreads();
        }
        int stage = start / TILE % 2, next = start + TILE;
        bf16 *now = stage ? second : room, *later = stage ? room : second;
        const bf16 *keys = now, *values = keys + TILE * D, *there = q + (size_t)next * stride + c;
        if (next < share.length) fetch_both<D>(later, there, stride, there + c, stride, share.length - next);
        if (own >= rows) continue;

        float s[2][TILE / 8][4];
        multiply_rows<D, 2, TILE>(s, queries, keys, 0);
        if (start + TILE > share.length) exclude<2, TILE>(s, share.length - start - column);
        exponentiate<D>(s, sums, highest, total, steep);
        if (mask.drops()) drop(s, mask, query, start + column);
        add_product<D, 2, TILE>(sums, s, values, 0);
    }
    __syncthreads();
    size_t first = (size_t)share.first + share.begin + own;
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float sum = quad_sum(total[m][0]), sum8 = quad_sum(total[m][1]);
        int there = rows - own - 16 * m, g = lane / 4;
        bf16* to = y + (first + 16 * m) * c + head * D;
        store_rows<D>(to, c, there, room + (own + 16 * m) * D, sums[m], mask.scale / sum, mask.scale / sum8);
        float* to_lse = lse + (first + 16 * m + g) * heads + head;
        if (column == 0 && g < there) to_lse[0] = highest[m][0] * root + logf(sum);
        if (column == 0 && g + 8 < there) to_lse[8 * heads] = highest[m][1] * root + logf(sum8);
    }
}

// In backward: scores to p, and dy vT to ds; to `more` a lane's own part of its rows' sums of ds.
__device__ __forceinline__ void differentiate(
    float (&p)[1][PART / 8][4], float (&ds)[1][PART / 8][4], float (&more)[2], const float (&logarithm)[2],
    const float (&moment)[2], const Mask& mask, int query, int key, float steep) {
#pragma unroll
    for (int n = 0; n < PART / 16; n++) {
        uint4 words = make_uint4(0, 0, 0, 0);
        if (mask.drops()) words = mask.words(query, key + 16 * n);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int half = e / 2 % 2;
            float &s = p[0][2 * n + e / 4][e % 4], &slope = ds[0][2 * n + e / 4][e % 4];
            s = power_of_2(s * steep - logarithm[half]);
            slope = s * ((mask.keeps(words, e / 2, e % 2) ? slope * mask.scale : 0.0f) - moment[half]);
            more[half] += slope;
        }
    }
}

// dq, and each row's sum of p dp, as in gpu.cu: what dy y is wrong by is found along the way and taken off at the end.
template <int D>
__device__ __forceinline__ void differentiate_queries(
    bf16* dqkv, float* moments, const bf16* dy, const bf16* y, const float* lse, const bf16* qkv, const int* offsets,
    const int* examples, int sequences, int heads, const Dropout& dropout) {
    DYNAMIC_SHARED(bf16, room);
    bf16* second = room + 2 * TILE * D;  // stage
    int head = blockIdx.y, c = heads * D, stride = 3 * c;
    Share share = share_of(offsets, sequences, blockIdx.x, TILE);
    int rows = share.rows(TILE);
    if (rows <= 0) return;
    Mask mask(dropout, head, examples[share.first]);
    size_t first = (size_t)share.first + share.begin;
    const bf16 *q = qkv + (size_t)share.first * stride + head * D, *slopes = dy + first * c + head * D;
    fetch_both<D>(second, q + (size_t)share.begin * stride, stride, slopes, c, rows);
    fetch_both<D>(room, q + c, stride, q + 2 * c, stride, share.length);

    int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16, column = 2 * (lane % 4), row = own + lane / 4;
    int query = share.begin + row;
    float root = rsqrtf((float)D), steep = root * LOG2E, logarithm[2], moment[2], more[2] = {};
    for (int half = 0; half < 2; half++) {
        bool there = row + 8 * half < rows;
        size_t at = (first + row + 8 * half) * heads + head;
        logarithm[half] = there ? lse[at] * LOG2E : 0.0f;
        moment[half] = there ? quarter_of_product<D>(dy + at * D, y + at * D) : 0.0f;
        moment[half] = quad_sum(moment[half]);
    }
    unsigned int queries[1][D / 16][4], gradients[1][D / 16][4];
    float sums[1][D / 8][4] = {}, of_keys[1][D / 8][4] = {};

    for (int start = 0; start < share.length; start += TILE) {
        copies_done();
        __syncthreads();
        if (start == 0) {
            load_left<D>(queries[0], second, own);
            load_left<D>(gradients[0], second + TILE * D, own);
            __syncthreads();
        }
        int stage = start / TILE % 2, next = start + TILE;
        bf16 *now = stage ? second : room, *later = stage ? room : second;
        const bf16 *keys = now, *values = keys + TILE * D, *there = q + (size_t)next * stride + c;
        if (next < share.length) fetch_both<D>(later, there, stride, there + c, stride, share.length - next);
        if (own >= rows) continue;
#pragma unroll 1
        for (int part = 0; part < min(TILE, share.length - start); part += PART) {
            float p[1][PART / 8][4], ds[1][PART / 8][4];
            multiply_rows<D, 1, PART>(p, queries, keys, part);
            if (start + part + PART > share.length) exclude<1, PART>(p, share.length - start - part - column);
            multiply_rows<D, 1, PART>(ds, gradients, values, part);
            differentiate(p, ds, more, logarithm, moment, mask, query, start + part + column, steep);
            add_product<D, 1, PART>(sums, ds, keys, part);
            add_product<D, 1, PART>(of_keys, p, keys, part);
        }
    }
    __syncthreads();
    for (int half = 0; half < 2; half++) {
        more[half] = quad_sum(more[half]);
        if (column == 0 && row + 8 * half < rows)
            moments[(first + row + 8 * half) * heads + head] = moment[half] + more[half];
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[0][n][e] -= more[e / 2] * of_keys[0][n][e];
    store_rows<D>(dqkv + (first + own) * stride + head * D, stride, rows - own, room + own * D, sums[0], root, root);
}

// The bits of a lane's keys k and k + 8, and of its queries q and q + 8 (`first`) and q + 1 and q + 9 (`second`): the
// lower halves are those of q, a word is a key's. Of a call of Philox it has use only for the half of its key's parity.
// So of the two calls for its queries it makes one, and the lane with the key next to its own the other.
__device__ __forceinline__ void draw_transposed(
    unsigned int (&first)[2], unsigned int (&second)[2], const Mask& mask, int q, int k) {
    bool odd = k & 1;
    uint4 words = mask.words(q + odd, k);
    unsigned int mine = odd ? 0x7632 : 0x5410, other = odd ? 0x5410 : 0x7632;
    unsigned int kept[2] = {__byte_perm(words.x, words.y, mine), __byte_perm(words.z, words.w, mine)};
    unsigned int sent[2] = {__byte_perm(words.x, words.y, other), __byte_perm(words.z, words.w, other)};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sent[i] = __shfl_xor_sync(0xffffffffu, sent[i], 4);
        first[i] = odd ? sent[i] : kept[i];
        second[i] = odd ? kept[i] : sent[i];
    }
}

// Scores, keys before queries, to what p keeps, and v dyT to ds. `of_queries`: lse and, TILE further on, sums of p dp.
__device__ __forceinline__ void differentiate_transposed(
    float (&p)[1][PART / 8][4], float (&ds)[1][PART / 8][4], const float* of_queries, const Mask& mask, int query,
    int key, float steep) {
#pragma unroll
    for (int n = 0; n < PART / 16; n++) {
        unsigned int first[2] = {}, second[2] = {};
        if (mask.drops()) draw_transposed(first, second, mask, query + 16 * n, key);
#pragma unroll
        for (int side = 0; side < 2; side++) {  // a lane's queries, then 8 more
            const float* there = of_queries + 16 * n + 8 * side;
            float2 logarithm = *(const float2*)there, moment = *(const float2*)(there + TILE);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float &s = p[0][2 * n + side][e], &slope = ds[0][2 * n + side][e];
                bool kept = mask.keeps((e % 2 ? second : first)[e / 2], side);
                s = power_of_2(s * steep - (e % 2 ? logarithm.y : logarithm.x) * LOG2E);
                slope = s * ((kept ? slope * mask.scale : 0.0f) - (e % 2 ? moment.y : moment.x));
                s = kept ? s : 0.0f;
            }
        }
    }
}

// dk and dv. Scores stand the other way round, keys before queries, so that they are left operands again.
template <int D>
__device__ __forceinline__ void differentiate_keys(
    bf16* dqkv, const float* moments, const bf16* dy, const float* lse, const bf16* qkv, const int* offsets,
    const int* examples, int sequences, int heads, const Dropout& dropout) {
    DYNAMIC_SHARED(bf16, room);
    bf16* second = room + 2 * TILE * D;  // stage
    float* statistics = (float*)(room + 4 * TILE * D);  // of the queries of both stages: lse, and sums of p dp
    int head = blockIdx.y, c = heads * D, stride = 3 * c;
    Share share = share_of(offsets, sequences, blockIdx.x, TILE);
    int rows = share.rows(TILE);
    if (rows <= 0) return;
    Mask mask(dropout, head, examples[share.first]);
    const bf16 *q = qkv + (size_t)share.first * stride + head * D, *k = q + (size_t)share.begin * stride + c;
    const bf16* slopes = dy + (size_t)share.first * c + head * D;
    fetch_both<D>(second, k, stride, k + c, stride, rows);
    fetch_both<D>(room, q, stride, slopes, c, share.length);
    fetch_statistics(statistics, lse, moments, (size_t)share.first * heads + head, heads, share.length);

    int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16, column = 2 * (lane % 4);
    int key = share.begin + own + lane / 4;
    float root = rsqrtf((float)D), steep = root * LOG2E;
    unsigned int keys[1][D / 16][4], values[1][D / 16][4];
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};

    for (int start = 0; start < share.length; start += TILE) {
        copies_done();
        __syncthreads();
        if (start == 0) {
            load_left<D>(keys[0], second, own);
            load_left<D>(values[0], second + TILE * D, own);
            __syncthreads();
        }
        int stage = start / TILE % 2, next = start + TILE;
        bf16 *now = stage ? second : room, *later = stage ? room : second;
        const bf16 *queries = now, *gradients = queries + TILE * D;
        if (next < share.length) {
            fetch_both<D>(
                later, q + (size_t)next * stride, stride, slopes + (size_t)next * c, c, share.length - next);
            fetch_statistics(statistics + (1 - stage) * 2 * TILE, lse, moments,
                             ((size_t)share.first + next) * heads + head, heads, share.length - next);
        }
        if (own >= rows) continue;
#pragma unroll 1
        for (int part = 0; part < min(TILE, share.length - start); part += PART) {
            float p[1][PART / 8][4], ds[1][PART / 8][4];
            multiply_rows<D, 1, PART>(p, keys, queries, part);
            multiply_rows<D, 1, PART>(ds, values, gradients, part);
            const float* of_queries = statistics + stage * 2 * TILE + part + column;
            differentiate_transposed(p, ds, of_queries, mask, start + part + column, key, steep);
            add_product<D, 1, PART>(dv, p, gradients, part);
            add_product<D, 1, PART>(dk, ds, queries, part);
        }
    }
    __syncthreads();
    bf16* to = dqkv + ((size_t)share.first + share.begin + own) * stride + head * D;
    store_rows<D>(to + c, stride, rows - own, room + own * D, dk[0], root, root);
    store_rows<D>(to + 2 * c, stride, rows - own, room + own * D, dv[0], mask.scale, mask.scale);
}

#endif

extern "C" __global__ void __launch_bounds__(128, 2) forward_64(
    unsigned short* y, float* lse, const unsigned short* qkv, const int* offsets, const int* examples, int sequences,
    int heads, unsigned int threshold, float scale, unsigned long long seed, unsigned int stream) {
#ifdef TENSOR_CORES
    attend<64>(y, lse, qkv, offsets, examples, sequences, heads, {threshold, scale, seed, stream});
#endif
}
extern "C" __global__ void __launch_bounds__(128, 2) forward_32(
    unsigned short* y, float* lse, const unsigned short* qkv, const int* offsets, const int* examples, int sequences,
    int heads, unsigned int threshold, float scale, unsigned long long seed, unsigned int stream) {
#ifdef TENSOR_CORES
    attend<32>(y, lse, qkv, offsets, examples, sequences, heads, {threshold, scale, seed, stream});
#endif
}
extern "C" __global__ void __launch_bounds__(128, 3) backward_queries_64(
    unsigned short* dqkv, float* moments, const unsigned short* dy, const unsigned short* y, const float* lse,
    const unsigned short* qkv, const int* offsets, const int* examples, int sequences, int heads,
    unsigned int threshold, float scale, unsigned long long seed, unsigned int stream) {
#ifdef TENSOR_CORES
    differentiate_queries<64>(
        dqkv, moments, dy, y, lse, qkv, offsets, examples, sequences, heads, {threshold, scale, seed, stream});
#endif
}
extern "C" __global__ void __launch_bounds__(128, 3) backward_keys_64(
    unsigned short* dqkv, const float* moments, const unsigned short* dy, const float* lse, const unsigned short* qkv,
    const int* offsets, const int* examples, int sequences, int heads, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream) {
#ifdef TENSOR_CORES
    differentiate_keys<64>(
        dqkv, moments, dy, lse, qkv, offsets, examples, sequences, heads, {threshold, scale, seed, stream});
#endif
}
extern "C" __global__ void __launch_bounds__(128, 3) backward_queries_32(
    unsigned short* dqkv, float* moments, const unsigned short* dy, const unsigned short* y, const float* lse,
    const unsigned short* qkv, const int* offsets, const int* examples, int sequences, int heads,
    unsigned int threshold, float scale, unsigned long long seed, unsigned int stream) {
#ifdef TENSOR_CORES
    differentiate_queries<32>(
        dqkv, moments, dy, y, lse, qkv, offsets, examples, sequences, heads, {threshold, scale, seed, stream});
#endif
}
extern "C" __global__ void __launch_bounds__(128, 3) backward_keys_32(
    unsigned short* dqkv, const float* moments, const unsigned short* dy, const float* lse, const unsigned short* qkv,
    const int* offsets, const int* examples, int sequences, int heads, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream) {
#ifdef TENSOR_CORES
    differentiate_keys<32>(
        dqkv, moments, dy, lse, qkv, offsets, examples, sequences, heads, {threshold, scale, seed, stream});
#endif
}
