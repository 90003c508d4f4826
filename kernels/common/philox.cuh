// Philox4x32-10 by counter: kernels/common/philox.py has the layout, the reasons and the source.
__device__ __forceinline__ uint4 philox(
    unsigned int c0, unsigned int c1, unsigned int c2, unsigned int c3, unsigned long long seed) {
    unsigned int key0 = (unsigned int)seed, key1 = (unsigned int)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned int high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        unsigned int high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// Added to every stream: a recorded step's number, times 512, which launches that are recorded cannot have as an argument.
__device__ unsigned int stream_base;

// Dropout as kernels take it: an element is kept where its 16 bits reach `threshold`, and then multiplied by `scale`.
struct Dropout {
    unsigned int threshold;
    float scale;
    unsigned long long seed;
    unsigned int stream;

    __device__ __forceinline__ uint4 draw(unsigned int c0, unsigned int c1, unsigned int c2) const {
        return philox(c0, c1, c2, stream + stream_base, seed);
    }

    __device__ __forceinline__ bool drops() const { return threshold != 0; }

    // What element e of eight is multiplied by; the low half of word e / 2 for even e, the high half for odd e.
    __device__ __forceinline__ float multiplier(uint4 words, int e) const {
        unsigned int word = e < 2 ? words.x : e < 4 ? words.y : e < 6 ? words.z : words.w;
        return (e & 1 ? word : word << 16) >= threshold << 16 ? scale : 0.0f;  // what is below the half changes nothing
    }

    // The words of columns 8 * block to 8 * block + 7 of a token's row.
    __device__ __forceinline__ uint4 hidden(int block, int position, int example) const {
        return draw(block, position, example);
    }

    // The same, or zeros, whose elements are all kept, where nothing is dropped.
    __device__ __forceinline__ uint4 words(int block, int position, int example) const {
        return drops() ? hidden(block, position, example) : make_uint4(0, 0, 0, 0);
    }
};
