// 16 numbers at once: one register of AVX-512, two of AVX2; and functions of them.
//
// The code is written once on these types. GCC's own vectors of 64 bytes would do for both, but
// without AVX-512 it lowers them number by number.

#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))
#define ALWAYS_MEMBER inline __attribute__((always_inline))
#define VECTOR(type, bytes) type __attribute__((vector_size(bytes), aligned(1), may_alias))

typedef VECTOR(uint16_t, 32) H16;
typedef VECTOR(int8_t, 16) B16;

#ifdef __AVX512F__
typedef VECTOR(float, 64) F16;
typedef VECTOR(int32_t, 64) I16;
typedef VECTOR(uint32_t, 64) U16;

ALWAYS F16 to_float(I16 x) { return __builtin_convertvector(x, F16); }
ALWAYS I16 to_int(F16 x) { return __builtin_convertvector(x, I16); }
ALWAYS B16 narrow(I16 x) { return __builtin_convertvector(x, B16); }
ALWAYS I16 widen(B16 x) { return __builtin_convertvector(x, I16); }
ALWAYS U16 widen(H16 x) { return __builtin_convertvector(x, U16); }
ALWAYS F16 as_float(U16 x) { return (F16)x; }
ALWAYS U16 as_bits(F16 x) { return (U16)x; }
ALWAYS I16 as_int(U16 x) { return (I16)x; }
ALWAYS U16 as_bits(I16 x) { return (U16)x; }
ALWAYS F16 pick(I16 mask, F16 yes, F16 no) { return (F16)(((I16)yes & mask) | ((I16)no & ~mask)); }
ALWAYS F16 larger(F16 a, F16 b) { return (F16)_mm512_max_ps((__m512)a, (__m512)b); }
ALWAYS float sum(F16 v) { return _mm512_reduce_add_ps((__m512)v); }
ALWAYS int32_t sum(I16 v) { return _mm512_reduce_add_epi32((__m512i)v); }
ALWAYS float largest(F16 v) { return _mm512_reduce_max_ps((__m512)v); }

#else
typedef VECTOR(float, 32) F8;
typedef VECTOR(int32_t, 32) I8;
typedef VECTOR(uint32_t, 32) U8;
typedef VECTOR(uint16_t, 16) H8;
typedef VECTOR(int8_t, 8) B8;

template <class V, class Number, class Mask>
struct Two {
  V a, b;
  Two() : a{}, b{} {}
  Two(V a, V b) : a(a), b(b) {}
  Two(Number x) : a(V{} + x), b(V{} + x) {}
#define EACH(op) \
  friend ALWAYS_MEMBER Two operator op(Two x, Two y) { return {x.a op y.a, x.b op y.b}; }
  EACH(+) EACH(-) EACH(*) EACH(/)
  friend ALWAYS_MEMBER Mask operator<(Two x, Two y) { return {x.a < y.a, x.b < y.b}; }
  friend ALWAYS_MEMBER Mask operator>(Two x, Two y) { return {x.a > y.a, x.b > y.b}; }
  friend ALWAYS_MEMBER Mask operator>=(Two x, Two y) { return {x.a >= y.a, x.b >= y.b}; }
  friend ALWAYS_MEMBER Mask operator==(Two x, Two y) { return {x.a == y.a, x.b == y.b}; }
  ALWAYS_MEMBER Two& operator+=(Two y) { return *this = *this + y; }
  ALWAYS_MEMBER Two& operator*=(Two y) { return *this = *this * y; }
  ALWAYS_MEMBER Two operator-() const { return {-a, -b}; }
};

template <class V, class Number>
struct Whole : Two<V, Number, Whole<V, Number>> {
  typedef Two<V, Number, Whole> Base;
  using Base::Base;
  Whole() {}
  Whole(Base x) : Base(x) {}
#define BITS(op) \
  friend ALWAYS_MEMBER Whole operator op(Whole x, Whole y) { return {x.a op y.a, x.b op y.b}; }
  BITS(&) BITS(|) BITS(^)
  ALWAYS_MEMBER Whole operator~() const { return {~this->a, ~this->b}; }
  ALWAYS_MEMBER Whole operator<<(int n) const { return {this->a << n, this->b << n}; }
  ALWAYS_MEMBER Whole operator>>(int n) const { return {this->a >> n, this->b >> n}; }
};

typedef Whole<I8, int32_t> I16;
typedef Whole<U8, uint32_t> U16;
typedef Two<F8, float, I16> F16;

ALWAYS F16 to_float(I16 x) {
  return {__builtin_convertvector(x.a, F8), __builtin_convertvector(x.b, F8)};
}
ALWAYS I16 to_int(F16 x) {
  return {__builtin_convertvector(x.a, I8), __builtin_convertvector(x.b, I8)};
}
ALWAYS I16 widen(B16 x) {
  __m128i v = (__m128i)x;
  return {(I8)_mm256_cvtepi8_epi32(v), (I8)_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v))};
}
ALWAYS U16 widen(H16 x) {
  __m256i v = (__m256i)x;
  return {(U8)_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
          (U8)_mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1))};
}
ALWAYS B16 narrow(I16 x) {  // numbers that fit
  __m256i pairs = _mm256_packs_epi32((__m256i)x.a, (__m256i)x.b);
  pairs = _mm256_permute4x64_epi64(pairs, 0xd8);
  return (B16)_mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}
ALWAYS F16 as_float(U16 x) { return {(F8)x.a, (F8)x.b}; }
ALWAYS U16 as_bits(F16 x) { return {(U8)x.a, (U8)x.b}; }
ALWAYS I16 as_int(U16 x) { return {(I8)x.a, (I8)x.b}; }
ALWAYS U16 as_bits(I16 x) { return {(U8)x.a, (U8)x.b}; }
ALWAYS F16 pick(I16 mask, F16 yes, F16 no) {
  return {(F8)_mm256_blendv_ps((__m256)no.a, (__m256)yes.a, (__m256)mask.a),
          (F8)_mm256_blendv_ps((__m256)no.b, (__m256)yes.b, (__m256)mask.b)};
}
ALWAYS F16 larger(F16 x, F16 y) {
  return {(F8)_mm256_max_ps((__m256)x.a, (__m256)y.a), (F8)_mm256_max_ps((__m256)x.b, (__m256)y.b)};
}
// In the order of AVX-512's own: halves, quarters, eighths.
ALWAYS float sum(F16 v) {
  F8 x = v.a + v.b;
  for (int step = 4; step; step /= 2)
    for (int i = 0; i < step; i++) x[i] += x[i + step];
  return x[0];
}
ALWAYS int32_t sum(I16 v) {
  I8 x = v.a + v.b;
  for (int step = 4; step; step /= 2)
    for (int i = 0; i < step; i++) x[i] += x[i + step];
  return x[0];
}
ALWAYS float largest(F16 v) {
  F8 x = (F8)_mm256_max_ps((__m256)v.a, (__m256)v.b);
  for (int step = 4; step; step /= 2)
    for (int i = 0; i < step; i++) x[i] = x[i] > x[i + step] ? x[i] : x[i + step];
  return x[0];
}
#endif

ALWAYS F16 all(float x) { return F16{} + x; }
ALWAYS I16 wide(int32_t x) { return I16{} + x; }
ALWAYS F16 absolute(F16 a) { return as_float(as_bits(a) & U16{} + 0x7fffffffu); }
ALWAYS F16 rounded(F16 x) { return (x + 12582912.0f) - 12582912.0f; }  // |x| < 2^22, to even

ALWAYS uint16_t to_bf16(float x) {  // rounded to the nearest, ties to even; nan stays nan
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

ALWAYS void store_bf16(uint16_t* p, F16 x) {
#ifdef __AVX512F__
  U16 bits = as_bits(x);
  U16 near = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  U16 number = (bits & 0x7fffffffu) <= 0x7f800000u;
  *(H16*)p = __builtin_convertvector((near & number) | (0x7fc0u & ~number), H16);
#else
  alignas(32) float numbers[16];
  *(F16*)numbers = x;
  for (int i = 0; i < 16; i++) p[i] = to_bf16(numbers[i]);
#endif
}

ALWAYS F16 from_bf16(H16 v) { return as_float(widen(v) << 16); }

ALWAYS F16 from_int8(B16 v) { return to_float(widen(v)); }

// e^x to 2 units in the last place: x = n ln 2 + r, a polynomial in r, 2^n by its exponent.
ALWAYS F16 exponential(F16 x) {
  x = pick(x < all(-87.0f), all(-87.0f), x);  // so that nan passes
  x = pick(x > all(88.0f), all(88.0f), x);
  F16 n = rounded(x * 1.44269504089f);
  F16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  F16 p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * as_float(as_bits(to_int(n) + wide(127)) << 23);
}

ALWAYS F16 sigmoid(F16 x) { return 1.0f / (1.0f + exponential(-x)); }

// erf by Abramowitz and Stegun 7.1.26: within 1.5e-7.
ALWAYS F16 error_function(F16 x) {
  F16 size = absolute(x);
  F16 t = 1.0f / (1.0f + 0.3275911f * size);
  F16 p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f +
          t * 1.061405429f))));
  F16 y = 1.0f - p * exponential(-size * size);
  return as_float(as_bits(y) | (as_bits(x) & U16{} + 0x80000000u));
}

enum Activation { NONE, SILU, GELU, GELU_TANH, QUICK_GELU, RELU, TANH };

ALWAYS F16 activate(F16 x, int kind) {
  switch (kind) {
    case SILU: return x * sigmoid(x);
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GELU_TANH: return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case RELU: return pick(x < all(0.0f), F16{}, x);
    case TANH: return 2.0f * sigmoid(2.0f * x) - 1.0f;
    default: return x;
  }
}
