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

// Dropout in one head of one sequence; queries and keys are named by their position.
struct Mask {
    unsigned int least;  // the threshold at the upper end of a word, where the odd element's sixteen bits need no shift
    float scale;
    unsigned int head, example, stream;
    unsigned long long seed;

    __device__ __forceinline__ Mask(const Dropout& dropout, int head, int example)
        : least(dropout.threshold << 16), scale(dropout.scale), head(head << 16), example(example),
          stream(dropout.stream + stream_base), seed(dropout.seed) {}

    __device__ __forceinline__ bool drops() const { return least != 0; }

    // The words of the eight elements that a query q (or q + 8, where q % 16 < 8) and a key k have part in: philox.py.
    __device__ __forceinline__ uint4 words(unsigned int q, unsigned int k) const {
        return philox(k / 16 * 4 + k % 8 / 2, head | (q / 16 * 8 + q % 8), example, stream, seed);
    }

    // Whether one of the two elements of a word is kept.
    __device__ __forceinline__ bool keeps(unsigned int word, bool odd) const {
        return (odd ? word : word << 16) >= least;
    }

    // The same of word 0 to 3: the lower bit is that of q / 8, the upper one that of k / 8, `odd` that of k.
    __device__ __forceinline__ bool keeps(uint4 words, int word, bool odd) const {
        return keeps(word == 0 ? words.x : word == 1 ? words.y : word == 2 ? words.z : words.w, odd);
    }
};
