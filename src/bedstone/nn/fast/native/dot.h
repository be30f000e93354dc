// Products of 16 outputs with a group of 32 inputs, for R rows at a time: what differs between
// instruction sets. Weights stand 16 outputs side by side (panels): (ins / 4, 16, 4) bytes,
// (ins / 8, 16, 4) pairs of four bits, (ins / 2, 16, 2) bf16, (ins, 16) fp32.
//
// The sums of whole numbers are exact, so both forms give the same bits: AVX2 has no product that
// can't overflow for 8 x 8 bits, so it widens them to 16.

#pragma once
#include "math.h"

enum { GROUP = 32 };  // inputs of a row that share a scale

#ifdef __AVX512F__
enum { TILE = 8, DEEP = 6 };  // rows that stand in registers at once: queries, and of products

ALWAYS F16 from_half(const uint16_t* p) {
  return (F16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}

ALWAYS I16 dot(I16 sum, I16 w, I16 x) {
  return (I16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

// N panels, `apart` bytes from each other. `sums` are those of each row's inputs: weights of 8
// bits are kept as w + 128.
template <int R, int N>
ALWAYS void dot8(const uint8_t* w, int64_t apart, const int8_t* const* x, const int32_t* sums,
                 I16 (*out)[N]) {
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) out[r][n] = wide(-128 * sums[r]);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    I16 v[N];
    for (int n = 0; n < N; n++) v[n] = *(const I16*)(w + n * apart + 64 * j);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      I16 four = wide(((const int32_t*)x[r])[j]);
      for (int n = 0; n < N; n++) out[r][n] = dot(out[r][n], v[n], four);
    }
  }
}

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
ALWAYS void dot8(const uint8_t* panels, int64_t apart, const int8_t* const* x, const int32_t* sums,
                 I16 (*out)[N]) {
  for (int n = 0; n < N; n++) {
    const uint8_t* w = panels + n * apart;
    __m256i parts[R][4];  // of four outputs each, two halves of an output side by side
    for (int r = 0; r < R; r++)
      for (int k = 0; k < 4; k++) parts[r][k] = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++) {
      __m256i rows[R];
      for (int r = 0; r < R; r++) {
        int32_t four;
        memcpy(&four, x[r] + 4 * j, 4);
        rows[r] = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
      }
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + 64 * j + 16 * k)));
        for (int r = 0; r < R; r++)
          parts[r][k] = _mm256_add_epi32(parts[r][k], _mm256_madd_epi16(v, rows[r]));
      }
    }
    for (int r = 0; r < R; r++) {
      __m256i a = _mm256_hadd_epi32(parts[r][0], parts[r][1]);
      __m256i b = _mm256_hadd_epi32(parts[r][2], parts[r][3]);
      out[r][n] = I16((I8)_mm256_permute4x64_epi64(a, 0xd8), (I8)_mm256_permute4x64_epi64(b, 0xd8));
      out[r][n] += wide(-128 * sums[r]);
    }
  }
}

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
ALWAYS Rough to_rough(float x) { return to_bf16(x); }
ALWAYS F16 dot_bf16(F16 sum, U16 w, const Rough* x) {
  int32_t two;
  memcpy(&two, x, 4);
  return (F16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(two));
}
#else
typedef float Rough;
ALWAYS Rough to_rough(float x) { return x; }
ALWAYS F16 dot_bf16(F16 sum, U16 w, const Rough* x) {
  sum += as_float(w << 16) * x[0];
  return sum + as_float(w & U16{} + 0xffff0000u) * x[1];
}
#endif
