// CUDA C as plain C++ on one core: a block's threads are fibres that take turns, and give way at barriers only.
// What it can find: wrong results, out-of-step barriers, and, played in another order, most missing ones; arrays and
// dynamic shared memory that a kernel goes beyond (guards.py).
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#else
static unsigned _mm_getcsr() { return 0; }
static void _mm_setcsr(unsigned) {}
#endif

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static __attribute__((section("shared_memory")))  // together, so that they can be spoilt
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __launch_bounds__(...)
#define __builtin_assume(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }
static inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
    return {x, y, z, w};
}

static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
static inline float __int_as_float(int x) { return __uint_as_float((unsigned)x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf
#define __logf logf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { volatile float y = a * b; return y; }
static inline float __fadd_rn(float a, float b) { volatile float y = a + b; return y; }
static inline int __float2int_rn(float x) { return (int)lrintf(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned y = 0;
    for (int i = 0; i < 4; i++) y |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return y;
}
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }

static dim3 threadIdx, blockIdx, blockDim, gridDim;

enum { MOST_THREADS = 1024, MOST_COPIES = 64, STACK = 1 << 16, DYNAMIC = 228 << 10 };
struct Barrier { int arrived, generation; };
struct Warp { Barrier barrier; int alive; uint64_t slots[2][32]; unsigned char rooms[2][32][32]; };
struct Copy { void* to; const void* from; int bytes; };
struct Fibre {
    ucontext_t context;
    jmp_buf at;
    bool begun, done;
    dim3 index;
    int number, started;
    Copy copies[MOST_COPIES];
};

static Fibre fibres[MOST_THREADS], *current;
static Warp warps[MOST_THREADS / 32];
static Barrier everybody;
static int alive, moves, voted;
static jmp_buf scheduler;
alignas(128) static unsigned char dynamic_shared[DYNAMIC + 1];
extern unsigned char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));
static void (*kernel)(void**);
static void** kernel_arguments;

static void give_way() {
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}
static void open_if_full(Barrier& barrier, int expected) {
    if (barrier.arrived && barrier.arrived == expected) barrier.arrived = 0, barrier.generation++, moves++;
}
static void wait_at(Barrier& barrier, int& expected) {
    int generation = barrier.generation;
    barrier.arrived++, moves++;
    open_if_full(barrier, expected);
    while (barrier.generation == generation) give_way();
}
static Warp& warp() { return warps[current->number / 32]; }
static inline void __syncthreads() { wait_at(everybody, alive); }
static inline void __syncwarp(unsigned = 0xffffffffu) { wait_at(warp().barrier, warp().alive); }
static inline void __threadfence() {}
static inline int __syncthreads_or(int x) {
    __syncthreads(); voted = 0; __syncthreads();
    if (x) voted = 1;
    __syncthreads();
    int y = voted;
    __syncthreads();
    return y;
}

// Lanes meet once an exchange: in the next one they write elsewhere, and in the one after it all have read this.
static inline int lane() { return current->number % 32; }
template <class T> static T from_lane(T x, int source) {
    auto& slots = warp().slots[warp().barrier.generation % 2];
    memcpy(&slots[lane()], &x, sizeof x);
    __syncwarp();
    memcpy(&x, &slots[source & 31], sizeof x);
    return x;
}
template <class T> static void from_all_lanes(T (&all)[32], T mine) {
    static_assert(sizeof mine <= sizeof Warp().rooms[0][0]);
    auto& rooms = warp().rooms[warp().barrier.generation % 2];
    memcpy(rooms[lane()], &mine, sizeof mine);
    __syncwarp();
    for (int i = 0; i < 32; i++) memcpy(&all[i], rooms[i], sizeof mine);
}
template <class T> static T __shfl_sync(unsigned, T x, int source, int width = 32) {
    return from_lane(x, lane() / width * width + source % width);
}
template <class T> static T __shfl_xor_sync(unsigned, T x, int mask, int = 32) { return from_lane(x, lane() ^ mask); }
template <class T> static T __shfl_down_sync(unsigned, T x, int by, int width = 32) {
    return from_lane(x, lane() % width + by < width ? lane() + by : lane());
}
template <class T> static T __shfl_up_sync(unsigned, T x, int by, int width = 32) {
    return from_lane(x, lane() % width >= by ? lane() - by : lane());
}
static unsigned __ballot_sync(unsigned, int x) {
    int all[32];
    unsigned y = 0;
    from_all_lanes(all, x);
    for (int i = 0; i < 32; i++) y |= (all[i] ? 1u : 0u) << i;
    return y;
}

// Copies that a thread has started, cp.async: they arrive when it waits, or at once. No source means zeros.
static bool copies_at_once;
static void finish_copies() {
    for (int i = 0; i < current->started; i++) {
        const Copy& copy = current->copies[i];
        if (copy.from) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    current->started = 0;
}
static void start_copy(const Copy& copy) {
    if (current->started == MOST_COPIES) abort();
    current->copies[current->started++] = copy;
    if (copies_at_once) finish_copies();
}
static inline int __any_sync(unsigned m, int x) { return __ballot_sync(m, x) != 0; }
static inline int __all_sync(unsigned m, int x) { return !__ballot_sync(m, !x); }

template <class T> static T atomicAdd(T* to, T x) { T before = *to; *to += x; return before; }
template <class T> static T atomicMax(T* to, T x) { T before = *to; if (before < x) *to = x; return before; }

// A fibre's life is one block after the other: to make it takes two calls of the system.
static void live() {
    for (;;) {
        kernel(kernel_arguments);
        current->done = true;
        alive--, moves++;
        warp().alive--;
        open_if_full(everybody, alive);
        open_if_full(warp().barrier, warp().alive);
        give_way();
    }
}

static void make(Fibre& fibre, void* stack) {
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = stack;
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, live, 0);
}

static void resume(Fibre* fibre) {
    current = fibre;
    threadIdx = fibre->index;
    if (_setjmp(scheduler)) return;
    if (fibre->begun) _longjmp(fibre->at, 1);
    fibre->begun = true;
    setcontext(&fibre->context);
}

// One block; false if its threads wait for each other for good: new fibres take their places. `order` 0: threads in turn; 1: from the last to the
// first, each warp as far ahead of the others as it gets, and copies arrive when they are started; more: shuffled by
// it.
static bool play_block(int threads, unsigned shared, unsigned order) {
    static unsigned char* stacks = (unsigned char*)aligned_alloc(4096, (size_t)MOST_THREADS * STACK);
    static int turn[MOST_THREADS];
    memset(dynamic_shared, 0xff, shared);  // NaN, for whoever reads what nobody wrote
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    memset(warps, 0, (threads + 31) / 32 * sizeof *warps);
    everybody = {0, 0};
    alive = threads;
    copies_at_once = order == 1;
    for (int i = 0; i < threads; i++) {
        Fibre& fibre = fibres[i];
        if (!fibre.begun) make(fibre, stacks + (size_t)i * STACK);
        fibre.done = false;
        fibre.started = 0;
        fibre.number = i;
        fibre.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        warps[i / 32].alive++;
        turn[i] = order == 1 ? threads - 1 - i : i;
    }
    for (int i = threads - 1; order > 1 && i > 0; i--) {
        order = order * 1664525u + 1013904223u;
        int j = (order >> 8) % (i + 1), other = turn[i];
        turn[i] = turn[j], turn[j] = other;
    }
    while (alive) {
        int before = moves;
        for (int begin = 0, end = 0, now; begin < threads; begin = end) {
            while (end < threads && (order != 1 || turn[end] / 32 == turn[begin] / 32)) end++;
            do {
                now = moves;
                for (int i = begin; i < end; i++)
                    if (!fibres[turn[i]].done) resume(&fibres[turn[i]]);
            } while (order == 1 && moves != now);
        }
        if (moves == before) {
            for (int i = 0; i < threads; i++) fibres[i].begun = false;
            return false;
        }
    }
    return true;
}

// Whether the dynamic shared memory past what a launch asked for is still spoilt. All of it is, afterwards.
static bool untouched(unsigned from) {
    const unsigned char* past = dynamic_shared + from;
    bool same = *past == 0xff && !memcmp(past, past + 1, DYNAMIC - from);
    memset(dynamic_shared, 0xff, same ? from : DYNAMIC + 1);
    return same;
}

// 0, or what went wrong: emulator.py names it.
static int play(const unsigned* grid, const unsigned* block, unsigned shared, unsigned order, void (*function)(void**),
                void** arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    kernel = function, kernel_arguments = arguments;
    static bool spoilt;
    if (!spoilt) spoilt = memset(dynamic_shared, 0xff, sizeof dynamic_shared);
    int failed = 0;
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);  // subnormals are zeros, as NVRTC is told by CuPy (-ftz=true)
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
                if (!failed && !play_block(block[0] * block[1] * block[2], shared, order)) failed = 1;
    if (!untouched(shared) && !failed) failed = 2;
    _mm_setcsr(before);
    return failed;
}
