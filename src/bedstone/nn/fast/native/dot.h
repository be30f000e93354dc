// Products of 16 outputs with a group of 32 inputs, for R rows at a time: what differs between
// instruction sets. Weights stand 16 outputs side by side (panels): (ins / 4, 16, 4) bytes,
// (ins / 8, 16, 4) pairs of four bits, (ins / 2, 16, 2) bf16, (ins, 16) fp32.
//
// The sums of whole numbers are exact, so both forms give the same bits: AVX2 has no product that
// can't overflow for 8 x 8 bits, so it widens them to 16.

#pragma once
#include "math.h"

enum { GROUP = 32 };  // inputs of a row that have high digits or not

#ifdef __AVX512F__
enum { TILE = 8, DEEP = 8 };  // rows that stand in registers at once: queries, and of products

ALWAYS F16 from_half(const uint16_t* p) {
  return (F16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}

ALWAYS I16 dot(I16 sum, I16 w, I16 x) {
  return (I16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

// Sums of R rows over inputs `from` to `to` of N panels, `apart` bytes from each other. Weights of
// 8 bits are kept as w + 128, so sums begin at -128 times those of the rows' inputs.
template <int R, int N>
struct Sums {
  I16 held[R][N];
  ALWAYS_MEMBER Sums(const int32_t* inputs) {
    for (int r = 0; r < R; r++)
      for (int n = 0; n < N; n++) held[r][n] = wide(-128 * inputs[r]);
  }
  ALWAYS_MEMBER void add(const uint8_t* w, int64_t apart, const int8_t* const* x, int from, int to) {
    enum { SETS = R * N >= 4 ? 1 : 4 / (R * N) };  // so that no sum waits for the one before
    I16 sums[SETS][R][N];
    for (int r = 0; r < R; r++)
      for (int n = 0; n < N; n++) {
        sums[0][r][n] = held[r][n];
        for (int set = 1; set < SETS; set++) sums[set][r][n] = wide(0);
      }
#pragma GCC unroll 4
    for (int j = from / 4; j < to / 4; j += SETS) {
#pragma GCC unroll 4
      for (int set = 0; set < SETS; set++) {
        I16 v[N];
        for (int n = 0; n < N; n++) v[n] = *(const I16*)(w + n * apart + 64 * (int64_t)(j + set));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          I16 four = wide(((const int32_t*)x[r])[j + set]);
          for (int n = 0; n < N; n++) sums[set][r][n] = dot(sums[set][r][n], v[n], four);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int n = 0; n < N; n++) {
        held[r][n] = sums[0][r][n];
        for (int set = 1; set < SETS; set++) held[r][n] += sums[set][r][n];
      }
  }
  ALWAYS_MEMBER void floats(F16 (*out)[N]) const {
    for (int r = 0; r < R; r++)
      for (int n = 0; n < N; n++) out[r][n] = to_float(held[r][n]);
  }
};

template <int R, int N>
ALWAYS void dot4(const uint8_t* w, int64_t apart, const int8_t* const* x, I16 (*out)[N]) {
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) out[r][n] = wide(0);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    I16 low[N], high[N];
    for (int n = 0; n < N; n++) {
      I16 v = *(const I16*)(w + n * apart + 64 * j);
      low[n] = v & wide(0x0f0f0f0f);
      high[n] = as_int(as_bits(v) >> 4) & wide(0x0f0f0f0f);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      I16 first = wide(((const int32_t*)x[r])[2 * j]);
      I16 second = wide(((const int32_t*)x[r])[2 * j + 1]);
      for (int n = 0; n < N; n++) {
        out[r][n] = dot(out[r][n], low[n], first);
        out[r][n] = dot(out[r][n], high[n], second);
      }
    }
  }
}

#else
enum { TILE = 2, DEEP = 3 };

ALWAYS F16 from_half(const uint16_t* p) {
  return {(F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          (F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}

template <int R, int N>
struct Sums {
  __m256i held[N][R][4];  // of four outputs each, two halves of an output side by side
  const int32_t* inputs;
  ALWAYS_MEMBER Sums(const int32_t* inputs) : inputs(inputs) {
    for (int n = 0; n < N; n++)
      for (int r = 0; r < R; r++)
        for (int k = 0; k < 4; k++) held[n][r][k] = _mm256_setzero_si256();
  }
  ALWAYS_MEMBER void add(const uint8_t* w, int64_t apart, const int8_t* const* x, int from, int to) {
    for (int n = 0; n < N; n++) {
      __m256i parts[R][4];
      for (int r = 0; r < R; r++)
        for (int k = 0; k < 4; k++) parts[r][k] = held[n][r][k];
      for (int j = from / 4; j < to / 4; j++) {
        __m256i rows[R];
        for (int r = 0; r < R; r++) {
          int32_t four;
          memcpy(&four, x[r] + 4 * j, 4);
          rows[r] = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
        }
        const uint8_t* at = w + n * apart + 64 * (int64_t)j;
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(at + 16 * k)));
          for (int r = 0; r < R; r++)
            parts[r][k] = _mm256_add_epi32(parts[r][k], _mm256_madd_epi16(v, rows[r]));
        }
      }
      for (int r = 0; r < R; r++)
        for (int k = 0; k < 4; k++) held[n][r][k] = parts[r][k];
    }
  }
  ALWAYS_MEMBER void floats(F16 (*out)[N]) const {
    for (int n = 0; n < N; n++)
      for (int r = 0; r < R; r++) {
        __m256i a = _mm256_hadd_epi32(held[n][r][0], held[n][r][1]);
        __m256i b = _mm256_hadd_epi32(held[n][r][2], held[n][r][3]);
        I16 sums((I8)_mm256_permute4x64_epi64(a, 0xd8), (I8)_mm256_permute4x64_epi64(b, 0xd8));
        out[r][n] = to_float(sums + wide(-128 * inputs[r]));
      }
  }
};

template <int R, int N>
ALWAYS void dot4(const uint8_t* panels, int64_t apart, const int8_t* const* x, I16 (*out)[N]) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int n = 0; n < N; n++)
    for (int k = 0; k < 2; k++) {
      __m256i sums[R];  // 8 terms of at most 2 * 15 * 127 fit 16 bits
      for (int r = 0; r < R; r++) sums[r] = _mm256_setzero_si256();
      for (int j = 0; j < 4; j++) {
        const uint8_t* w = panels + n * apart + 64 * j + 32 * k;
        __m256i v = _mm256_loadu_si256((const __m256i*)w);
        __m256i first = _mm256_and_si256(v, low);
        __m256i second = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        for (int r = 0; r < R; r++) {
          int32_t four[2];
          memcpy(four, x[r] + 8 * j, 8);
          __m256i a = _mm256_maddubs_epi16(first, _mm256_set1_epi32(four[0]));
          __m256i b = _mm256_maddubs_epi16(second, _mm256_set1_epi32(four[1]));
          sums[r] = _mm256_add_epi16(sums[r], _mm256_add_epi16(a, b));
        }
      }
      for (int r = 0; r < R; r++)
        (k ? out[r][n].b : out[r][n].a) =
            (I8)_mm256_madd_epi16(sums[r], _mm256_set1_epi16(1));
    }
}
#endif

// Two inputs a step, in fp32 whatever the weights: bf16 rows where the processor has them.
#if defined(__AVX512F__) && defined(__AVX512BF16__)
typedef uint16_t Rough;
ALWAYS void to_rough(Rough* p, F16 x) { store_bf16(p, x); }
ALWAYS F16 dot_bf16(F16 sum, U16 w, const Rough* x) {
  int32_t two;
  memcpy(&two, x, 4);
  return (F16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(two));
}
#else
typedef float Rough;
ALWAYS void to_rough(Rough* p, F16 x) { *(F16*)p = x; }
ALWAYS F16 dot_bf16(F16 sum, U16 w, const Rough* x) {
  sum += as_float(w << 16) * x[0];
  return sum + as_float(w & U16{} + 0xffff0000u) * x[1];
}
#endif
