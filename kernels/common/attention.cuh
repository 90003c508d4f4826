// What attention's kernels share: which rows of packed sequences a block has, and dropout's words.

#define LOWEST __uint_as_float(0xff800000u)  // minus infinity, a score that no key has

// Rows of one sequence: `begin` of them come before, `length` has the sequence, whose first one is row `first` of T.
struct Share {
    int first, length, begin;
    __device__ __forceinline__ int rows(int most) const { return min(most, length - begin); }
};

// The share of block `slot`, at most `rows` rows; none are left (begin >= length) for some slots. Sequence s has those
// from offsets[s] / rows + s on: there are T / rows + S, a bound the host knows, and as these starts rise with s, all
// lanes of a warp find theirs together, 32 probes at a time.
__device__ __forceinline__ Share share_of(const int* offsets, int sequences, int slot, int rows) {
    int low = 0, left = sequences;  // the sequence is one of `left` from `low` on
    while (left > 1) {
        int step = (left + 31) / 32, probe = (int)(threadIdx.x % 32) * step;
        bool begun = probe < left && offsets[low + probe] / rows + low + probe <= slot;
        int last = (__popc(__ballot_sync(0xffffffffu, begun)) - 1) * step;
        low += last;
        left = min(step, left - last);
    }
    int first = offsets[low];
    return {first, offsets[low + 1] - first, (slot - first / rows - low) * rows};
}

// The words of the eight elements that a query q (or q + 8, where q % 16 < 8) and a key k has part in: philox.py.
__device__ __forceinline__ uint4 attention_words(const Dropout& dropout, int head, int q, int k, int example) {
    return dropout.draw(k / 16 * 4 + k % 8 / 2, (unsigned int)head << 16 | (q / 16 * 8 + q % 8), example);
}

// Whether an element of a pair's word is kept. (Sixteen bits are compared at the upper end: the odd one's need no shift.)
__device__ __forceinline__ bool keeps(const Dropout& dropout, unsigned int word, bool odd) {
    return (odd ? word : word << 16) >= dropout.threshold << 16;
}

// Element e of eight: bit 0 is the key's parity, bit 1 that of q / 8, bit 2 that of k / 8.
__device__ __forceinline__ bool keeps(const Dropout& dropout, uint4 words, int pair, bool odd) {
    return keeps(dropout, pair == 0 ? words.x : pair == 1 ? words.y : pair == 2 ? words.z : words.w, odd);
}
