// Passes over memory that a training step makes many of, each as one: dropout, and the softmax of
// logits with the loss and its gradient.

#include <omp.h>
#include "math.h"

namespace {

typedef VECTOR(uint64_t, 32) Q4;

ALWAYS F16 load(const uint16_t* p) { return from_bf16(*(const H16*)p); }
#ifdef __AVX512F__
ALWAYS F16 load(const float* p) { return *(const F16*)p; }
ALWAYS void store(float* p, F16 x) { *(F16*)p = x; }
#else  // a pair of registers would have to be aligned
ALWAYS F16 load(const float* p) { return {*(const F8*)p, *(const F8*)(p + 8)}; }
ALWAYS void store(float* p, F16 x) { *(F8*)p = x.a, *(F8*)(p + 8) = x.b; }
#endif
ALWAYS void store(uint16_t* p, F16 x) { store_bf16(p, x); }
ALWAYS float number(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
ALWAYS float number(float x) { return x; }
ALWAYS void set(uint16_t* p, float x) { *p = to_bf16(x); }
ALWAYS void set(float* p, float x) { *p = x; }

// splitmix64 (Steele et al., 2014): seeds that differ by one give states that have nothing in common.
uint64_t mixed(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Four generators side by side, xoroshiro128+ (Blackman and Vigna, 2021): 16 numbers of 16 bits.
struct Random {
  Q4 a, b;
  Random(uint64_t seed, int64_t block) {
    uint64_t state = seed;
    state = mixed(state) + (uint64_t)block * 0xd1342543de82ef95ull;
    for (int i = 0; i < 4; i++) a[i] = mixed(state);
    for (int i = 0; i < 4; i++) b[i] = mixed(state) | 1;
  }
  ALWAYS_MEMBER static Q4 turned(Q4 x, int n) { return (x << n) | (x >> (64 - n)); }
  ALWAYS_MEMBER H16 next() {
    Q4 out = a + b, other = a ^ b;
    a = turned(a, 24) ^ other ^ (other << 16);
    b = turned(other, 37);
    return (H16)out;
  }
};

enum { BLOCK = 4096 };  // values that have a generator of their own: threads change nothing

// The 16 bits that keep or drop each value.
ALWAYS H16 kept(Random& random, uint32_t share) {
  return (H16)(random.next() < (H16{} + (uint16_t)share));
}

ALWAYS void drop(const uint16_t* x, uint16_t* out, H16 keep, float scale) {
  store_bf16(out, from_bf16(*(const H16*)x & keep) * scale);
}
ALWAYS void drop(const float* x, float* out, H16 keep, float scale) {
  U16 mask = widen(keep);
  store(out, as_float(as_bits(load(x)) & (mask | (mask << 16))) * scale);
}

template <class T>
void dropout(const T* x, T* out, int64_t count, uint64_t seed, uint32_t share, float scale,
             int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < (count + BLOCK - 1) / BLOCK; block++) {
    Random random(seed, block);
    int64_t end = (block + 1) * BLOCK < count ? (block + 1) * BLOCK : count, i = block * BLOCK;
    for (; i + 16 <= end; i += 16) drop(x + i, out + i, kept(random, share), scale);
    if (i < end) {
      T some[16] = {};
      memcpy(some, x + i, (end - i) * sizeof(T));
      drop(some, some, kept(random, share), scale);
      memcpy(out + i, some, (end - i) * sizeof(T));
    }
  }
}

// A row of logits becomes softmax - wanted, with wanted 1 - smoothing at the target and
// smoothing / V everywhere. Returns the cross-entropy. `wide` holds V numbers and 16 more.
template <class T>
float error_of(T* row, const float* bias, int64_t target, int64_t count, float smoothing,
               float* wide) {
  F16 most = all(-__builtin_inff()), total = all(0.0f);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    F16 x = load(row + i);
    if (bias) x = x + load(bias + i);
    store(wide + i, x);
    most = larger(x, most);
    total += x;
  }
  float top = largest(most), plain = sum(total);
  for (int64_t k = i; k < count; k++) {
    wide[k] = number(row[k]) + (bias ? bias[k] : 0.0f);
    if (wide[k] > top) top = wide[k];
    plain += wide[k];
  }
  for (int64_t k = count; k < i + 16; k++) wide[k] = -__builtin_inff();
  float at = wide[target];
  F16 sums = all(0.0f);
  for (i = 0; i < count; i += 16) {
    F16 x = exponential(load(wide + i) - top);
    store(wide + i, x);
    sums += x;
  }
  for (int64_t k = count; k < i; k++) wide[k] = 0.0f;
  float whole = sum(sums), each = smoothing / count, lse = top + __builtin_logf(whole);
  float rate = 1.0f / whole;
  for (i = 0; i + 16 <= count; i += 16) store(row + i, load(wide + i) * rate - each);
  for (; i < count; i++) set(row + i, wide[i] * rate - each);
  set(row + target, wide[target] * rate - each - (1.0f - smoothing));
  return lse - (1.0f - smoothing) * at - each * plain;
}

template <class T>
void errors(T* logits, const float* bias, const int64_t* targets, float* losses, int64_t rows,
            int64_t count, float smoothing, float* wide, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    losses[row] = error_of(logits + row * count, bias, targets[row], count, smoothing,
                           wide + omp_get_thread_num() * (count + 16));
}

}  // namespace

extern "C" {

void bedstone_dropout(const void* x, void* out, int64_t count, int bytes, uint64_t seed,
                      uint32_t share, float scale, int threads) {
  if (bytes == 2)
    dropout((const uint16_t*)x, (uint16_t*)out, count, seed, share, scale, threads);
  else
    dropout((const float*)x, (float*)out, count, seed, share, scale, threads);
}

void bedstone_errors(void* logits, int bytes, const float* bias, const int64_t* targets,
                     float* losses, int64_t rows, int64_t count, float smoothing, float* wide,
                     int threads) {
  if (bytes == 2)
    errors((uint16_t*)logits, bias, targets, losses, rows, count, smoothing, wide, threads);
  else
    errors((float*)logits, bias, targets, losses, rows, count, smoothing, wide, threads);
}
}
