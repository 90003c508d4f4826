// DYNAMIC_SHARED(float, room): `room` points to the block's dynamic shared memory, whose bytes the launch says.
#ifdef EMULATED
#define DYNAMIC_SHARED(type, name) type* name = (type*)dynamic_shared
#else
#define DYNAMIC_SHARED(type, name)                             \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type* name = (type*)dynamic_shared
#endif
