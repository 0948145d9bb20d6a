// Includes SOURCE, the file itself, once for each float type a tensor can store: as `Stored`, with kernel names that
// end in the type. Sums are f32 in both.
#define Stored float
#define VARIANT(name) name##_f32
#include SOURCE
#undef Stored
#undef VARIANT
#define Stored bf16
#define VARIANT(name) name##_bf16
#include SOURCE
#undef Stored
#undef VARIANT
