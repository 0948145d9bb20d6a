// Arithmetic intrinsics, conversions and 16-bit floats.
#pragma once

// ---- bits ----
namespace emu {
template <class To, class From>
EMU_NOSAN inline To bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &x, sizeof to);
    return to;
}
}  // namespace emu

inline float __int_as_float(int x) { return emu::bits<float>(x); }
inline int __float_as_int(float x) { return emu::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emu::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emu::bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return emu::bits<double>(x); }
inline long long __double_as_longlong(double x) { return emu::bits<long long>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline unsigned __brev(unsigned x) {
    x = x << 16 | x >> 16;
    x = (x & 0x00ff00ffu) << 8 | (x >> 8 & 0x00ff00ffu);
    x = (x & 0x0f0f0f0fu) << 4 | (x >> 4 & 0x0f0f0f0fu);
    x = (x & 0x33333333u) << 2 | (x >> 2 & 0x33333333u);
    return (x & 0x55555555u) << 1 | (x >> 1 & 0x55555555u);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> 4 * i & 15;
        unsigned byte = bytes >> 8 * (s & 7) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;  // replicate the sign
        out |= byte << 8 * i;
    }
    return out;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return unsigned((uint64_t(hi) << 32 | lo) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return unsigned((uint64_t(hi) << 32 | lo) >> (shift & 31));
}

// ---- floating point. The fast intrinsics are exact here: a test against a GPU needs its own tolerance for
// them ----
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void sincospif(float x, float* s, float* c) {
    const double pi = 3.14159265358979323846;
    *s = float(sin(pi * double(x)));
    *c = float(cos(pi * double(x)));
}
inline float __powf(float x, float y) { return powf(x, y); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x >= 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN becomes 0
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// Four products of bytes, added to c.
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 0xffu) * (b >> i & 0xffu);
    return c;
}
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

// Conversions saturate on the GPU; a NaN becomes 0.
namespace emu {
template <class T>
inline T to_integer(double x) {
    const double low = double(std::is_signed<T>::value ? T(1) << (8 * sizeof(T) - 2) : T(0)) * -2.0;
    const double high = ldexp(1.0, 8 * sizeof(T) - std::is_signed<T>::value);
    if (!(x == x)) return 0;
    if (x < low) return T(low);
    if (x >= high) return T(-1) < 0 ? T(~(T(1) << (8 * sizeof(T) - 1))) : T(-1);
    return T(x);
}
}  // namespace emu
inline float __double2float_rn(double x) { return float(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline int __float2int_rn(float x) { return emu::to_integer<int>(rint(double(x))); }
inline int __float2int_rz(float x) { return emu::to_integer<int>(trunc(double(x))); }
inline int __float2int_rd(float x) { return emu::to_integer<int>(floor(double(x))); }
inline int __float2int_ru(float x) { return emu::to_integer<int>(ceil(double(x))); }
inline unsigned __float2uint_rn(float x) { return emu::to_integer<unsigned>(rint(double(x))); }
inline unsigned __float2uint_rz(float x) { return emu::to_integer<unsigned>(trunc(double(x))); }
inline unsigned __float2uint_rd(float x) { return emu::to_integer<unsigned>(floor(double(x))); }

template <class T, class U>
inline std::common_type_t<T, U> min(T a, U b) {
    using C = std::common_type_t<T, U>;
    if constexpr (std::is_floating_point<C>::value) return C(fmin(C(a), C(b)));
    return C(a) < C(b) ? C(a) : C(b);
}
template <class T, class U>
inline std::common_type_t<T, U> max(T a, U b) {
    using C = std::common_type_t<T, U>;
    if constexpr (std::is_floating_point<C>::value) return C(fmax(C(a), C(b)));
    return C(a) > C(b) ? C(a) : C(b);
}

// ---- bf16 ----
inline unsigned emu_to_bf16(float x) {  // round to nearest even
    unsigned u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the NaN that the hardware makes
    return (u + 0x7fffu + (u >> 16 & 1)) >> 16;
}
struct __nv_bfloat16 {
    uint16_t raw;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : raw(uint16_t(emu_to_bf16(x))) {}
    operator float() const { return __uint_as_float(unsigned(raw) << 16); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 b) { return float(b); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __floats2bfloat162_rn(x, x); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline float __low2float(__nv_bfloat162 v) { return float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return float(v.y); }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.raw; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return emu::bits<__nv_bfloat16>(u); }
