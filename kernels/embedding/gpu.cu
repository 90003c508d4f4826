// Embedding, LayerNorm and dropout: layer_norm.cuh has the geometry. Forward reads the word's row, the others being few
// and in cache, and writes y. Backward leaves dz in scratch, from where it is added to the tables without atomic floats:
//
//   sort_pieces, merge_pieces   tokens in order of their word, position and segment, equal ones in their own order
//   add_runs                    sums of the rows of dz in sorted order, PIECE at a time: a run of equal indices that lies
//                               in one piece goes to its table's row at once, a part of one that crosses a border to `edges`
//   add_crossing_runs           the parts of such a run, in order, go to its row
//
// A table's row has one writer, and the sums depend on the indices alone. blockIdx.z or .y says which table is meant.
#include "layer_norm.cuh"
#include "philox.cuh"
#define SORTED 512  // tokens that a block sorts, by comparing each with each
#define PIECE 64    // tokens of a block of add_runs
#define COLUMNS 128 // of a block that sums; as in gpu.py
#define WARPS 8     // of a block of add_crossing_runs

// A thread's part of a token's three embeddings.
struct Row {
    Eight<float> word, segment, position;
    int place, example;
};

struct Tables {
    const float *word, *position, *segment;
};

__device__ __forceinline__ Row read(
    const Tables& tables, const int* ids, const int* segments, const int* positions, const int* examples, int row,
    int first, int c) {
    int place = positions[row];
    return {fetch8(tables.word + (size_t)ids[row] * c, first, c),
            fetch8(tables.segment + (size_t)segments[row] * c, first, c),
            fetch8(tables.position + (size_t)place * c, first, c), place, examples[row]};
}

__device__ __forceinline__ void add_up(float (&z)[8], const Row& row) {
    float segment[8], position[8];
    unpack(z, row.word);
    unpack(segment, row.segment);
    unpack(position, row.position);
#pragma unroll
    for (int e = 0; e < 8; e++) z[e] = z[e] + segment[e] + position[e];
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS) forward(
    storage* y, float* mean, float* rstd, const int* ids, const int* segments, const int* positions,
    const int* examples, const float* word, const float* position, const float* segment, const float* gamma,
    const float* beta, float eps, unsigned int threshold, float scale, unsigned long long seed, unsigned int stream,
    int rows, int t, int c) {
    __shared__ float2 rooms[64];
    PairSums sums = {rooms, 0};
    Dropout dropout = {threshold, scale, seed, stream};
    Tables tables = {word, position, segment};
    int first = 8 * threadIdx.x, row = blockIdx.x * rows, end = min(row + rows, t);
    float weights[8], shifts[8], z[1][8];
    load8(weights, gamma, first, c);
    load8(shifts, beta, first, c);
    Row next = read(tables, ids, segments, positions, examples, row, first, c);
    for (; row < end; row++) {
        add_up(z[0], next);
        int place = next.place, example = next.example;
        if (row + 1 < end) next = read(tables, ids, segments, positions, examples, row + 1, first, c);
        float2 moments = normalize(z, first, c, eps, sums);
        if (threadIdx.x == 0) {
            mean[row] = moments.x;
            rstd[row] = moments.y;
        }
        uint4 words = dropout.words(threadIdx.x, place, example);
#pragma unroll
        for (int e = 0; e < 8; e++) z[0][e] = (z[0][e] * weights[e] + shifts[e]) * dropout.multiplier(words, e);
        store8(y + (size_t)row * c, first, c, z[0]);
    }
}

// dz (t, c); partials (2, blocks, c): each block's sums of dgamma and of dbeta. dy2 may be null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) backward(
    float* dz, float* partials, const storage* dy, const storage* dy2, const float* mean, const float* rstd,
    const int* ids, const int* segments, const int* positions, const int* examples, const float* word,
    const float* position, const float* segment, const float* gamma, unsigned int threshold, float scale,
    unsigned long long seed, unsigned int stream, int rows, int t, int c) {
    __shared__ float2 rooms[64];
    PairSums sums = {rooms, 0};
    Dropout dropout = {threshold, scale, seed, stream};
    Tables tables = {word, position, segment};
    int first = 8 * threadIdx.x, row = blockIdx.x * rows, end = min(row + rows, t);
    Slopes slopes;
    slopes.begin(gamma, first, c);
    for (; row < end; row++) {
        Row now = read(tables, ids, segments, positions, examples, row, first, c);
        Arriving gradient = arriving(dy, dy2, mean, rstd, row, first, c);
        float xhat[8], d[8];
        add_up(xhat, now);
        gradient.sum(d, dy2 != nullptr);
        uint4 words = dropout.words(threadIdx.x, now.place, now.example);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            d[e] *= dropout.multiplier(words, e);
            xhat[e] = (xhat[e] - gradient.mean) * gradient.rstd;
        }
        slopes.through(d, xhat, gradient.rstd, c, sums);
        store8(dz + (size_t)row * c, first, c, d);
    }
    slopes.end(partials, first, c);
}

// keys and tokens (3, t): the indices into each table and whose they are, sorted in pieces of SORTED.
extern "C" __global__ void __launch_bounds__(SORTED) sort_pieces(
    int* keys, int* tokens, const int* ids, const int* positions, const int* segments, int t) {
    __shared__ int piece[SORTED];
    const int* indices = blockIdx.y == 0 ? ids : blockIdx.y == 1 ? positions : segments;
    int begin = blockIdx.x * SORTED, size = min(SORTED, t - begin), i = threadIdx.x;
    int key = i < size ? indices[begin + i] : 0;
    piece[i] = key;
    __syncthreads();
    if (i >= size) return;
    int before = 0;
    for (int other = 0; other < size; other++) before += piece[other] < key || (piece[other] == key && other < i);
    size_t at = (size_t)blockIdx.y * t + begin + before;
    keys[at] = key;
    tokens[at] = begin + i;
}

// All of a table's pieces in one order: an element comes after what is smaller in each piece, and equal in earlier ones.
extern "C" __global__ void merge_pieces(
    int* keys, int* tokens, const int* piece_keys, const int* piece_tokens, int t) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= t) return;
    size_t table = (size_t)blockIdx.y * t;
    int key = piece_keys[table + i], before = i % SORTED;
    for (int begin = 0; begin < t; begin += SORTED) {
        if (begin == i / SORTED * SORTED) continue;
        bool earlier = begin < i;
        int low = begin, high = min(begin + SORTED, t);
        while (low < high) {
            int middle = (low + high) / 2, other = piece_keys[table + middle];
            if (other < key || (earlier && other == key)) low = middle + 1;
            else high = middle;
        }
        before += low - begin;
    }
    keys[table + before] = key;
    tokens[table + before] = piece_tokens[table + i];
}

__device__ __forceinline__ float* table_of(int which, float* dword, float* dposition, float* dsegment) {
    return which == 0 ? dword : which == 1 ? dposition : dsegment;
}

// edges (3, pieces, 2, c): of each piece the sums of the run that comes from the piece before, and of one that begins in
// it and goes on in the next; not written where there is no such run.
extern "C" __global__ void __launch_bounds__(COLUMNS) add_runs(
    float* dword, float* dposition, float* dsegment, float* edges, const float* dz, const int* keys, const int* tokens,
    int t, int c) {
    __shared__ int key[PIECE], token[PIECE];
    float* table = table_of(blockIdx.z, dword, dposition, dsegment);
    int begin = blockIdx.x * PIECE, size = min(PIECE, t - begin), column = blockIdx.y * COLUMNS + threadIdx.x;
    keys += (size_t)blockIdx.z * t + begin;
    tokens += (size_t)blockIdx.z * t + begin;
    for (int i = threadIdx.x; i < size; i += COLUMNS) {
        key[i] = keys[i];
        token[i] = tokens[i];
    }
    __syncthreads();
    if (column >= c) return;
    float* edge = edges + ((size_t)blockIdx.z * gridDim.x + blockIdx.x) * 2 * c + column;
    bool from_before = begin > 0 && keys[-1] == key[0], goes_on = begin + size < t && keys[size] == key[size - 1];
    float sum = 0.0f;
    for (int start = 0; start < size; start += 8) {
        float rows[8];  // eight loads on their way at once
#pragma unroll
        for (int k = 0; k < 8; k++) rows[k] = start + k < size ? dz[(size_t)token[start + k] * c + column] : 0.0f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int i = start + k;
            if (i >= size) break;
            sum += rows[k];
            bool last = i + 1 == size;
            if (!last && key[i + 1] == key[i]) continue;
            if (from_before) edge[0] = sum;
            else if (last && goes_on) edge[c] = sum;
            else table[(size_t)key[i] * c + column] += sum;
            from_before = false;
            sum = 0.0f;
        }
    }
}

// A block for each piece and COLUMNS columns; it has work where a run begins in its piece and goes on in the next. Its
// warps share the following pieces, as those of add_partials share chunks.
extern "C" __global__ void __launch_bounds__(32 * WARPS) add_crossing_runs(
    float* dword, float* dposition, float* dsegment, const float* edges, const int* keys, int t, int c) {
    __shared__ float sums[WARPS][COLUMNS];
    float* table = table_of(blockIdx.z, dword, dposition, dsegment);
    keys += (size_t)blockIdx.z * t;
    edges += (size_t)blockIdx.z * gridDim.x * 2 * c;
    int begin = blockIdx.x * PIECE, end = begin + PIECE, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (end >= t || keys[end] != keys[end - 1]) return;
    int key = keys[end];
    if (begin > 0 && keys[begin - 1] == key) return;  // it comes from an earlier piece
    int first = blockIdx.y * COLUMNS + lane;
    float sum[COLUMNS / 32] = {};
    for (int piece = blockIdx.x + 1 + warp; piece * PIECE < t && keys[piece * PIECE] == key; piece += WARPS)
#pragma unroll
        for (int k = 0; k < COLUMNS / 32; k++)
            if (first + 32 * k < c) sum[k] += edges[(size_t)piece * 2 * c + first + 32 * k];
#pragma unroll
    for (int k = 0; k < COLUMNS / 32; k++) sums[warp][lane + 32 * k] = sum[k];
    __syncthreads();
    int column = blockIdx.y * COLUMNS + threadIdx.x;
    if (threadIdx.x >= COLUMNS || column >= c) return;
    float total = edges[((size_t)blockIdx.x * 2 + 1) * c + column];
    for (int other = 0; other < WARPS; other++) total += sums[other][threadIdx.x];
    table[(size_t)key * c + column] += total;
}
