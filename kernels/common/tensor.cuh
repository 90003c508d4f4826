// Tensor cores for bf16 by mma.sync, from compute capability 8.0 on: the instructions, and what feeds them. PTX ISA,
// "Matrix Fragments for mma.m16n8k16": with g = lane / 4 and c = lane % 4 a lane holds
//     of A (16 x 16)  rows g, g + 8, g, g + 8;  columns 2c, 2c + 1 in the first two registers, 8 more in the others
//     of B (16 x 8)   rows 2c, 2c + 1, then 8 more;  column g
//     of C (16 x 8)   rows g, g, g + 8, g + 8;  columns 2c, 2c + 1, 2c, 2c + 1
// so that two C side by side, rounded to bf16 in pairs, are an A. The emulator's branches do the same by exchange.
#include "power.cuh"
#if defined(EMULATED) || __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1

typedef unsigned short bf16;

__device__ __forceinline__ unsigned int pack(float low, float high) {
#ifdef EMULATED
    return to_bf16(low) | (unsigned int)to_bf16(high) << 16;
#else
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

// c += a b
__device__ __forceinline__ void mma(float (&c)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
#ifdef EMULATED
    struct Fragments { bf16 a[8], b[4]; } mine, all[32];
    memcpy(mine.a, a, 16), memcpy(mine.b, &b0, 4), memcpy(mine.b + 2, &b1, 4);
    from_all_lanes(all, mine);
    int g = lane() / 4, two = 2 * (lane() % 4);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) {
            int part = k / 8 * 2, from = k % 8 / 2, odd = k % 2;  // who has it: the lane in a group, and where
            c[i] += to_float(all[g * 4 + from].a[(part + i / 2) * 2 + odd]) *
                    to_float(all[(two + i % 2) * 4 + from].b[part + odd]);
        }
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

#ifndef EMULATED
__device__ __forceinline__ unsigned int shared_address(const void* p) {
    return (unsigned int)__cvta_generic_to_shared(p);
}
#endif

// Four 8 x 8 matrices from shared memory, lanes 8 i to 8 i + 7 naming the rows of matrix i: to each lane row g, columns
// 2c and 2c + 1; transposed, rows 2c and 2c + 1 of column g.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(unsigned int (&to)[4], const bf16* row) {
#ifdef EMULATED
    const bf16* all[32];
    from_all_lanes(all, row);
    int g = lane() / 4, two = 2 * (lane() % 4);
    for (int i = 0; i < 4; i++)
        for (int odd = 0; odd < 2; odd++)
            ((bf16*)&to[i])[odd] = TRANSPOSED ? all[8 * i + two + odd][g] : all[8 * i + g][two + odd];
#else
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// Starts a copy of BYTES (4 or 16) to shared memory, of zeros where it is not `there`; `copies_done` waits for all that
// the thread has started. Other threads see them after a barrier.
template <int BYTES> __device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
#ifdef EMULATED
    start_copy({to, there ? from : nullptr, BYTES});
#else
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                     ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
#endif
}
__device__ __forceinline__ void copies_done() {
#ifdef EMULATED
    finish_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A tile: rows of D bf16 in shared memory, in chunks of 16 bytes that are swapped within a row so that the eight rows
// of a matrix lie in different banks.
template <int D> __device__ __forceinline__ int chunk_at(int row, int chunk) {
    return row * D + (chunk ^ row * D / 64 % (D / 8)) * 8;
}

// Starts the copy of `rows` rows into a tile, of which `there` are; the threads of a block, 64 or more, share the work.
template <int D>
__device__ __forceinline__ void fetch(bf16* tile, const bf16* from, size_t stride, int there, int rows) {
    int row = threadIdx.x / (D / 8), chunk = threadIdx.x % (D / 8), step = blockDim.x / (D / 8);
    from += row * stride + chunk * 8;
    tile += chunk_at<D>(row, chunk);  // every eighth row has its chunks in the same places
    for (; row < rows; row += step, from += step * stride, tile += step * D)
        copy_async<16>(tile, from, row < there);
}

// Row `lane_row`, chunk 2 k + `side` of the 16 rows of a tile from `row` on. Rows from 16 to 16 lie alike, and so what
// depends on the lane is one register for all k and rows.
template <int D>
__device__ __forceinline__ const bf16* place(const bf16* tile, int row, int k, int lane_row, int side) {
    return tile + row * D + (chunk_at<D>(lane_row, side) ^ 16 * k);
}

// 16 rows of a tile from `row` on, as the left operand of D / 16 products.
template <int D> __device__ __forceinline__ void load_left(unsigned int (&to)[D / 16][4], const bf16* tile, int row) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_matrices<false>(to[k], place<D>(tile, row, k, lane % 16, lane / 16));
}

// The right operand that 16 rows from `row` on and 16 columns from 16 k on are: two of m16n8k16, in registers 0, 1 and
// 2, 3. `load_rows`: of a product with the tile transposed, whose columns are summed over; `load_columns`: with the
// tile.
template <int D> __device__ __forceinline__ void load_rows(unsigned int (&to)[4], const bf16* tile, int row, int k) {
    int lane = threadIdx.x % 32;
    load_matrices<false>(to, place<D>(tile, row, k, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}
template <int D> __device__ __forceinline__ void load_columns(unsigned int (&to)[4], const bf16* tile, int row, int k) {
    int lane = threadIdx.x % 32;
    load_matrices<true>(to, place<D>(tile, row, k, lane % 16, lane / 16));
}

// sums = left times the transpose of N rows of a tile
template <int D, int M, int N>
__device__ __forceinline__ void multiply_rows(
    float (&sums)[M][N / 8][4], const unsigned int (&left)[M][D / 16][4], const bf16* tile, int row) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[m][n][e] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            unsigned int right[4];
            load_rows<D>(right, tile, row + 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][2 * n], left[m][k], right[0], right[1]);
                mma(sums[m][2 * n + 1], left[m][k], right[2], right[3]);
            }
        }
}

// Two C side by side, rounded, as an A.
__device__ __forceinline__ void as_left(unsigned int (&a)[4], const float (&low)[4], const float (&high)[4]) {
    a[0] = pack(low[0], low[1]), a[1] = pack(low[2], low[3]);
    a[2] = pack(high[0], high[1]), a[3] = pack(high[2], high[3]);
}

// sums += left, rounded, times N rows of a tile
template <int D, int M, int N>
__device__ __forceinline__ void add_product(
    float (&sums)[M][D / 8][4], const float (&left)[M][N / 8][4], const bf16* tile, int row) {
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        unsigned int rounded[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) as_left(rounded[m], left[m][2 * n], left[m][2 * n + 1]);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            unsigned int right[4];
            load_columns<D>(right, tile, row + 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][2 * k], rounded[m], right[0], right[1]);
                mma(sums[m][2 * k + 1], rounded[m], right[2], right[3]);
            }
        }
    }
}

// 16 rows times factors, one for rows g and one for g + 8, to memory by way of a warp's own 16 rows of a tile.
template <int D>
__device__ __forceinline__ void store_rows(
    bf16* to, size_t stride, int there, bf16* tile, const float (&sums)[D / 8][4], float factor, float factor8) {
    int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        *(unsigned int*)(tile + chunk_at<D>(g, n) + 2 * c) = pack(sums[n][0] * factor, sums[n][1] * factor);
        *(unsigned int*)(tile + chunk_at<D>(g + 8, n) + 2 * c) = pack(sums[n][2] * factor8, sums[n][3] * factor8);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 2 * D; i += 32) {
        int row = i / (D / 8), chunk = i % (D / 8);
        if (row < there) *(uint4*)(to + row * stride + chunk * 8) = *(const uint4*)(tile + chunk_at<D>(row, chunk));
    }
    __syncwarp();
}

__device__ __forceinline__ float quad_sum(float x) {  // over the lanes that share rows
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
#endif
