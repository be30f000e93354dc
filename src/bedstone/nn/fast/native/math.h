// Vectors of 16 numbers and what is computed on them. GCC and Clang lower these types to whatever
// the target has (one AVX-512 register, two of AVX2), so only what needs instructions of its own is
// written twice, in dot.h.

#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef float F16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t I16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t U16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t H16 __attribute__((vector_size(32), aligned(2), may_alias));
typedef int8_t B16 __attribute__((vector_size(16), aligned(1), may_alias));

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS F16 all(float x) { return F16{} + x; }
ALWAYS F16 as_float(U16 x) { return (F16)x; }
ALWAYS U16 as_bits(F16 x) { return (U16)x; }
ALWAYS F16 pick(I16 mask, F16 yes, F16 no) { return (F16)(((I16)yes & mask) | ((I16)no & ~mask)); }
ALWAYS F16 larger(F16 a, F16 b) { return pick(a > b, a, b); }
ALWAYS F16 absolute(F16 a) { return as_float(as_bits(a) & 0x7fffffffu); }
ALWAYS F16 rounded(F16 x) { return (x + 12582912.0f) - 12582912.0f; }  // |x| < 2^22, to even

ALWAYS float sum(F16 v) {
  float s[16];
  memcpy(s, &v, 64);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) s[i] += s[i + step];
  return s[0];
}

ALWAYS float largest(F16 v) {
  float s[16];
  memcpy(s, &v, 64);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) s[i] = s[i] > s[i + step] ? s[i] : s[i + step];
  return s[0];
}

ALWAYS uint16_t to_bf16(float x) {  // rounded to the nearest, ties to even; nan stays nan
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

ALWAYS F16 from_bf16(H16 v) { return as_float(__builtin_convertvector(v, U16) << 16); }

ALWAYS F16 from_int8(B16 v) {
  return __builtin_convertvector(__builtin_convertvector(v, I16), F16);
}

// e^x to 2 units in the last place: x = n ln 2 + r, a polynomial in r, 2^n by its exponent.
ALWAYS F16 exponential(F16 x) {
  x = pick(x < -87.0f, all(-87.0f), x);  // so that nan passes
  x = pick(x > 88.0f, all(88.0f), x);
  F16 n = rounded(x * 1.44269504089f);
  F16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  F16 p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * as_float((U16)((__builtin_convertvector(n, I16) + 127) << 23));
}

ALWAYS F16 sigmoid(F16 x) { return 1.0f / (1.0f + exponential(-x)); }

// erf by Abramowitz and Stegun 7.1.26: within 1.5e-7.
ALWAYS F16 error_function(F16 x) {
  F16 size = absolute(x);
  F16 t = 1.0f / (1.0f + 0.3275911f * size);
  F16 p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f +
          t * 1.061405429f))));
  F16 y = 1.0f - p * exponential(-size * size);
  return as_float(as_bits(y) | (as_bits(x) & 0x80000000u));
}

enum Activation { NONE, SILU, GELU, GELU_TANH, QUICK_GELU, RELU, TANH };

ALWAYS F16 activate(F16 x, int kind) {
  switch (kind) {
    case SILU: return x * sigmoid(x);
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GELU_TANH: return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case RELU: return pick(x < 0.0f, F16{}, x);
    case TANH: return 2.0f * sigmoid(2.0f * x) - 1.0f;
    default: return x;
  }
}
