// A decoder's step, or one product, as a list of operations over few rows, on all threads at once.
//
// A row's result doesn't depend on the rows beside it, nor on the number of threads: each output is
// summed in one order, whatever the tile. Shapes: M rows (tokens), H query heads, G key/value
// heads, W width of a head, padded to 16.

#include <omp.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <atomic>
#include "dot.h"
#include "tiles.h"

extern "C" {

enum Kind { FP32, BF16, INT8, INT4 };
enum { FETCHED = 16384 };  // bytes of the next product, while threads wait

struct Weights {  // of a linear layer, in panels of 16 outputs
  int32_t kind, outs, ins;  // outs and ins padded, to 16 and to 32
  int32_t group;            // inputs that share a scale, of INT4
  const void* data;
  const void* scales;  // INT8: fp32 (outs); INT4: halves (panels, groups, [scale, lowest], 16)
  const float* bias;   // (outs) or null
};

struct Norm {
  int32_t kind, width;  // 0 none, 1 by the root mean square, 2 by mean and variance
  float eps;
  const float *weight, *bias;  // bias may be null
};

struct Cache {  // keys stand 16 side by side: (rows, layers, G, C / 16, W, 16)
  void *keys, *values;               // values: (rows, layers, G, C, W)
  float *key_scales, *value_scales;  // (rows, layers, G, C) where kind is INT8
  int32_t layers, capacity;          // a multiple of 16
};

struct Attention {
  int32_t heads, groups, width, padded;  // width of a head, and padded to 16
  int32_t window;                        // tokens seen, 0 for all
  float scale;
  Norm q_norm, k_norm;
};

enum Code { EMBED, NORM, PRODUCT, GATED, SELF, KEEP, CROSS };

struct Op {
  int32_t code, source, target;  // numbers of buffers
  int32_t offset;                // where in the target's rows a product begins
  int32_t adds;                  // whether a product is added to what the target holds
  int32_t reads_bf16, gives_bf16;  // of a product alone: what source and target hold
  int32_t activation, layer;
  float factor;  // of what is embedded
  Norm norm;     // of the source
  const Weights* weights;
  const Attention* attention;
};

struct Call {
  const Op* ops;
  int32_t count, rows, threads;  // M
  int32_t active;                // of the threads, those that work
  int32_t cache_kind, area_stride, scores_stride;
  float coarse;  // times the usual group's largest number is what 8 bits of a row hold
  float* buffers[6];
  int32_t strides[6];
  char* area;            // rows made ready for a product: (max(M, 2 threads), area_stride) bytes
  float* scores;         // (threads, scores_stride): TILE rows of scores, or a row of a product
  Cache cache, memory;   // memory: what CROSS reads and KEEP writes
  const int32_t *ids, *owners, *slots;  // of each token, (M); its slot is its position
  const int32_t *memories, *seen;  // of each token: its memory, and how many of its states it sees
  const float *cosines, *sines;   // (positions, W / 2), or null
  const float* learnt;            // (positions, width of a row), or null
  const float* distances;         // added to scores: (H, reach + 16), of distances from reach - 1
  int32_t reach;                  // down to 0 and what is not seen; or null
};

}  // extern "C"

namespace {

struct Team {
  std::atomic<int> arrived{0}, phase{0}, sleepers{0}, next{0};
  int size = 1;

  // Spins for the time that a barrier takes on processors of one's own, then sleeps: where another
  // program has one of them, the system can run the thread that all wait for on this one.
  void wait() {
    int now = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1) + 1 == size) {
      arrived.store(0, std::memory_order_relaxed);
      next.store(0, std::memory_order_relaxed);
      phase.store(now + 1);
      if (sleepers.load()) syscall(SYS_futex, &phase, FUTEX_WAKE_PRIVATE, size, nullptr, nullptr, 0);
      return;
    }
    for (int spins = 0; spins < 3000; spins++) {
      if (phase.load(std::memory_order_acquire) != now) return;
      _mm_pause();
    }
    sleepers.fetch_add(1);
    while (phase.load() == now)
      syscall(SYS_futex, &phase, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
    sleepers.fetch_sub(1);
  }
};

struct Share {  // a thread's part of `count`
  int first, last;
  Share(int count, int thread, int threads)
      : first((int)((int64_t)count * thread / threads)),
        last((int)((int64_t)count * (thread + 1) / threads)) {}
};

void normalise(const Norm& norm, const float* x, float* y) {
  int width = norm.width;
  float mean = 0;
  F16 total{};
  int whole = width & ~15;
  if (norm.kind == 2) {
    for (int i = 0; i < whole; i += 16) total += *(const F16*)(x + i);
    mean = sum(total);
    for (int i = whole; i < width; i++) mean += x[i];
    mean /= width;
  }
  total = F16{};
  for (int i = 0; i < whole; i += 16) {
    F16 d = *(const F16*)(x + i) - mean;
    total += d * d;
  }
  float squares = sum(total);
  for (int i = whole; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
  float rate = 1.0f / __builtin_sqrtf(squares / width + norm.eps);
  for (int i = 0; i < width; i++)
    y[i] = (x[i] - mean) * rate * (norm.weight ? norm.weight[i] : 1.0f) +
           (norm.bias ? norm.bias[i] : 0.0f);
}

// A row as whole numbers with one scale: low + 256 high. High digits are kept of the groups of 32
// alone that don't fit 8 bits: a few channels with numbers far above the others'.
struct Coded {
  struct Whole {
    float scale;
    int32_t low_sum, high_sum;
  }* row;
  int8_t *low, *high;             // (ins); high is 0 in groups that aren't wide
  uint32_t* wide;                 // which groups have high digits: a bit each
  int32_t *low_sums, *high_sums;  // of each group, which weights kept with an offset need
  ALWAYS_MEMBER Coded(char* at, int ins) {
    row = (Whole*)at;
    wide = (uint32_t*)(row + 1);
    low = (int8_t*)(wide + words(ins));
    high = low + ins;
    low_sums = (int32_t*)(high + ins);
    high_sums = low_sums + ins / GROUP;
  }
  static int bytes(int ins) { return sizeof(Whole) + 4 * words(ins) + 2 * ins + 8 * (ins / GROUP); }
  static ALWAYS_MEMBER int words(int ins) { return (ins / GROUP + 31) / 32; }
};

// The largest number that 8 bits are to hold: of the usual group, times `coarse`. Few groups far
// above the others don't count.
float usual(const float* most, int groups, float coarse) {
  float limit = __builtin_inff();
  float mean = 0;
  for (int pass = 0; pass < 4; pass++) {
    float total = 0;
    int count = 0;
    for (int g = 0; g < groups; g++)
      if (most[g] <= limit) total += most[g], count++;
    mean = count ? total / count : 0;
    limit = 2 * mean;
  }
  return mean * coarse;
}

// Of a row made ready, in whole cache lines.
int ready_bytes(int kind, int ins) {
  int bytes = kind == FP32 ? 4 * ins : kind == BF16 ? (int)sizeof(Rough) * ins : Coded::bytes(ins);
  return (bytes + 63) & ~63;
}

// A row made ready for products: as it is (fp32), rounded (bf16), or coded.
void make_ready(int kind, const float* x, int ins, float coarse, char* out) {
  if (kind == FP32) {
    memcpy(out, x, sizeof(float) * ins);
    return;
  }
  if (kind == BF16) {
    for (int i = 0; i < ins; i += 16) to_rough((Rough*)out + i, *(const F16*)(x + i));
    return;
  }
  Coded to(out, ins);
  const int groups = ins / GROUP;
  float* most = (float*)to.low_sums;  // until sums take their place
  float top = 0;
  F16 odd{};  // nan where the row isn't finite
  for (int g = 0; g < groups; g++) {
    const F16* from = (const F16*)(x + GROUP * g);
    most[g] = largest(larger(absolute(from[0]), absolute(from[1])));
    top = most[g] > top ? most[g] : top;
    odd += (from[0] + from[1]) * 0.0f;
  }
  const float most_wide = 127 * 256;
  float limit = usual(most, groups, coarse);
  float scale = (limit < top ? limit : top) / 127;
  if (scale * most_wide < top) scale = top / most_wide;
  float inverse = scale > 0 ? 1 / scale : 0;
  *to.row = {scale + sum(odd), 0, 0};
  memset(to.wide, 0, 4 * Coded::words(ins));
  for (int g = 0; g < groups; g++) {
    const F16* from = (const F16*)(x + GROUP * g);
    bool wide_group = most[g] * inverse > 127;
    I16 digits[2], highs[2] = {wide(0), wide(0)};
    for (int part = 0; part < 2; part++) {
      F16 whole = rounded(from[part] * inverse);
      if (wide_group) {
        F16 high = rounded(whole * (1 / 256.0f));  // halves to even: low is from -128 to 128
        F16 low = whole - high * 256.0f;
        F16 over = pick(low > all(127.0f), all(1.0f), F16{});
        high += over;
        whole = low - over * 256.0f;
        highs[part] = to_int(high);
        *(B16*)(to.high + GROUP * g + 16 * part) = narrow(highs[part]);
      }
      digits[part] = to_int(whole);
      *(B16*)(to.low + GROUP * g + 16 * part) = narrow(digits[part]);
    }
    if (!wide_group) memset(to.high + GROUP * g, 0, GROUP);
    to.wide[g / 32] |= (uint32_t)wide_group << g % 32;
    to.row->low_sum += to.low_sums[g] = sum(digits[0] + digits[1]);
    to.row->high_sum += to.high_sums[g] = sum(highs[0] + highs[1]);
  }
}

// Weights of 8 bits: whole sums of all inputs, then of the high digits of wide groups.
template <int R, int N>
ALWAYS void bytes(const Weights& w, int number, const char* area, int stride, F16 (*out)[N]) {
  const int ins = w.ins;
  const uint8_t* p = (const uint8_t*)w.data + (int64_t)number * ins * 16;
  const int64_t apart = (int64_t)ins * 16;
  const int8_t *low[R], *high[R];
  int32_t low_sums[R], high_sums[R];
  for (int r = 0; r < R; r++) {
    Coded from((char*)area + r * (int64_t)stride, ins);
    low[r] = from.low;
    high[r] = from.high;
    low_sums[r] = from.row->low_sum;
    high_sums[r] = from.row->high_sum;
  }
  Sums<R, N> sums(low_sums);
  sums.add(p, apart, low, 0, ins);
  sums.floats(out);
  Sums<R, N> more(high_sums);
  bool any = false;
  for (int word = 0; word < Coded::words(ins); word++) {
    uint32_t wide_groups = 0;
    for (int r = 0; r < R; r++)
      wide_groups |= Coded((char*)area + r * (int64_t)stride, ins).wide[word];
    any |= wide_groups != 0;
    for (; wide_groups; wide_groups &= wide_groups - 1) {
      int g = 32 * word + __builtin_ctz(wide_groups);
      more.add(p, apart, high, GROUP * g, GROUP * (g + 1));
    }
  }
  if (any) {
    F16 tops[R][N];
    more.floats(tops);
    for (int r = 0; r < R; r++)
      for (int n = 0; n < N; n++) out[r][n] += tops[r][n] * 256.0f;
  }
  for (int n = 0; n < N; n++) {
    F16 steps = *(const F16*)((const float*)w.scales + 16 * (number + n));
    for (int r = 0; r < R; r++)
      out[r][n] *= steps * Coded((char*)area + r * (int64_t)stride, ins).row->scale;
  }
}

// Weights of 4 bits: whole sums of each of their groups, times its step.
template <int R, int N>
ALWAYS void pairs(const Weights& w, int number, const char* area, int stride, F16 (*out)[N]) {
  const int ins = w.ins, groups = ins / w.group, each = w.group / GROUP;
  const uint8_t* p = (const uint8_t*)w.data + (int64_t)number * ins * 8;
  const int64_t apart = (int64_t)ins * 8;
  const uint16_t* steps = (const uint16_t*)w.scales + (int64_t)number * groups * 32;
  for (int g = 0; g < groups; g++, steps += 32) {
    F16 step[N], lowest[N];
    for (int n = 0; n < N; n++) {
      step[n] = from_half(steps + 32 * n * groups);
      lowest[n] = from_half(steps + 32 * n * groups + 16);
    }
    for (int part = 0; part < each; part++) {
      const int at = g * each + part;
      for (int digit = 0; digit < 2; digit++) {
        const int8_t* codes[R];
        float sums[R];
        bool any = !digit;
        for (int r = 0; r < R; r++) {
          Coded from((char*)area + r * (int64_t)stride, ins);
          codes[r] = (digit ? from.high : from.low) + GROUP * at;
          sums[r] = digit ? from.high_sums[at] * 256.0f : from.low_sums[at];
          any |= from.wide[at / 32] >> at % 32 & 1;
        }
        if (!any) break;
        I16 dots[R][N];
        dot4<R, N>(p + at * GROUP * 8, apart, codes, dots);
        // one product a statement: of two in a sum a compiler may round either, as it likes
        for (int r = 0; r < R; r++)
          for (int n = 0; n < N; n++) {
            out[r][n] += to_float(dots[r][n]) * (digit ? step[n] * 256.0f : step[n]);
            out[r][n] += lowest[n] * sums[r];
          }
      }
    }
  }
  for (int r = 0; r < R; r++) {
    float scale = Coded((char*)area + r * (int64_t)stride, ins).row->scale;
    for (int n = 0; n < N; n++) out[r][n] *= scale;
  }
}

// Outputs of N neighbouring panels for R ready rows, without bias.
template <int R, int N>
ALWAYS void panels(const Weights& w, int number, const char* area, int stride, F16 (*out)[N]) {
  const int64_t ins = w.ins;
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) out[r][n] = F16{};
  if (w.kind == FP32) {
    const float* p = (const float*)w.data + number * ins * 16;
    for (int k = 0; k < ins; k++)
      for (int n = 0; n < N; n++) {
        F16 v = *(const F16*)(p + n * ins * 16 + 16 * k);
        for (int r = 0; r < R; r++)
          out[r][n] += ((const float*)(area + r * (int64_t)stride))[k] * v;
      }
    return;
  }
  if (w.kind == BF16) {
    const uint16_t* p = (const uint16_t*)w.data + number * ins * 16;
    for (int k = 0; k < ins; k += 2)
      for (int n = 0; n < N; n++) {
        U16 v = *(const U16*)(p + n * ins * 16 + 16 * k);
        for (int r = 0; r < R; r++)
          out[r][n] = dot_bf16(out[r][n], v, (const Rough*)(area + r * (int64_t)stride) + k);
      }
    return;
  }
  if (w.kind == INT8)
    bytes<R, N>(w, number, area, stride, out);
  else
    pairs<R, N>(w, number, area, stride, out);
}

ALWAYS void put(const Op& op, void* target, int64_t at, F16 y) {
  if (!op.gives_bf16) {
    F16* place = (F16*)((float*)target + at);
    *place = op.adds ? *place + y : y;
    return;
  }
  store_bf16((uint16_t*)target + at, y);
}

// Lines that are written to are fetched meanwhile.
template <int N>
ALWAYS void fetch_target(const Op& op, void* target, int64_t at, int step, int rows) {
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < N; n++)
      __builtin_prefetch((char*)target + (at + r * (int64_t)step + 16 * n) * (op.gives_bf16 ? 2 : 4), 1);
}

// Sums get their bias and activation, and their place. `at` is where in the target the first row's
// outputs begin.
template <int N>
ALWAYS void finish(const Op& op, int number, const F16 (*out)[N], void* target, int64_t at, int step,
                   int rows) {
  const Weights& w = *op.weights;
  F16 bias[N];
  for (int n = 0; n < N; n++)
    bias[n] = w.bias ? *(const F16*)(w.bias + 16 * (number + n)) : F16{};
  for (int r = 0; r < rows; r++) {
    const int64_t place = at + r * (int64_t)step;
    if (op.code == GATED) {  // the first panel is the gate of the second
      F16 gate = activate(out[r][0] + bias[0], op.activation);
      put(op, target, place, gate * (out[r][N - 1] + bias[N - 1]));
      continue;
    }
    for (int n = 0; n < N; n++)
      put(op, target, place + 16 * n, activate(out[r][n] + bias[n], op.activation));
  }
}

template <int R, int N>
void outputs(const Op& op, int number, const char* area, int stride, void* target, int64_t at,
             int step) {
  F16 out[R][N];
  fetch_target<N>(op, target, at, step, R);
  panels<R, N>(*op.weights, number, area, stride, out);
  finish<N>(op, number, out, target, at, step, R);
}

#ifdef __AMX_TILE__
// Whether products of a call go by tiles: of bf16 all, of 8 bits those of many rows.
bool tiled(const Weights& w, int rows) {
  return w.kind == BF16 || (w.kind == INT8 && rows > DEEP && w.ins % 64 == 0);
}

// Sums of `rows` coded rows, up to two blocks, as `bytes` has them.
template <int N>
void tile_bytes(const Weights& w, int number, const char* area, int stride, int rows, Sums2& sums,
                F16 (*out)[N]) {
  const int ins = w.ins;
  const char* p = (const char*)w.data + (int64_t)number * ins * 16;
  const int64_t apart = (int64_t)ins * 16;
  const Coded first((char*)area, ins);
  tile_zero<N>(rows);
  tile_steps<true, N>(p, apart, (const char*)first.low, stride, rows, 0, ins);
  tile_store<N>(rows, sums);
  for (int r = 0; r < rows; r++) {
    const int32_t all = Coded((char*)area + r * (int64_t)stride, ins).row->low_sum;
    for (int n = 0; n < N; n++)
      out[r][n] = to_float(*(const I16*)sums.of[r / HIGH][n][r % HIGH] + wide(-128 * all));
  }
  bool any = false;
  for (int word = 0; word < Coded::words(ins); word++) {
    uint32_t wide_groups = 0;
    for (int r = 0; r < rows; r++)
      wide_groups |= Coded((char*)area + r * (int64_t)stride, ins).wide[word];
    if (!wide_groups) continue;
    if (!any) tile_zero<N>(rows);
    any = true;
    for (int g = 0; g < 32; g += 2)  // two groups of inputs are a step
      if (wide_groups >> g & 3) {
        const int at = GROUP * (32 * word + g);
        tile_steps<true, N>(p, apart, (const char*)first.high, stride, rows, at, at + 2 * GROUP);
      }
  }
  if (any) {
    tile_store<N>(rows, sums);
    for (int r = 0; r < rows; r++) {
      const int32_t all = Coded((char*)area + r * (int64_t)stride, ins).row->high_sum;
      for (int n = 0; n < N; n++)
        out[r][n] += to_float(*(const I16*)sums.of[r / HIGH][n][r % HIGH] + wide(-128 * all)) * 256.0f;
    }
  }
  for (int n = 0; n < N; n++) {
    F16 steps = *(const F16*)((const float*)w.scales + 16 * (number + n));
    for (int r = 0; r < rows; r++)
      out[r][n] *= steps * Coded((char*)area + r * (int64_t)stride, ins).row->scale;
  }
}

// All rows, by tiles of 16 rows, two of them above each other.
template <int N>
void tile_column(const Call& call, const Op& op, int number, const char* area, int64_t at,
                 Tiles& tiles) {
  const Weights& w = *op.weights;
  const int stride = ready_bytes(w.kind, w.ins), step = call.strides[op.target];
  const int64_t apart = (int64_t)w.ins * 32;
  Sums2 sums;
  F16 out[BLOCKS * HIGH][N];
  for (int m = 0; m < call.rows; m += BLOCKS * HIGH) {
    const int rows = call.rows - m < BLOCKS * HIGH ? call.rows - m : BLOCKS * HIGH;
    const char* from = area + (int64_t)m * stride;
    const int64_t place = at + (int64_t)m * step;
    tiles.shape(rows < HIGH ? rows : HIGH, rows > HIGH ? rows - HIGH : 0);
    fetch_target<N>(op, call.buffers[op.target], place, step, rows);
    if (w.kind == INT8) {
      tile_bytes<N>(w, number, from, stride, rows, sums, out);
    } else {
      tile_zero<N>(rows);
      tile_steps<false, N>((const char*)w.data + number * apart, apart, from, stride, rows, 0,
                           2 * w.ins);
      tile_store<N>(rows, sums);
      for (int r = 0; r < rows; r++)
        for (int n = 0; n < N; n++) out[r][n] = *(const F16*)sums.of[r / HIGH][n][r % HIGH];
    }
    finish<N>(op, number, out, call.buffers[op.target], place, step, rows);
  }
}
#endif

// All rows, in tiles of nearly the same height. Up to DEEP are one tile: what comes from memory is
// then computed with as it comes.
template <int N>
void column(const Call& call, const Op& op, int number, const char* area, int64_t at) {
  const int stride = ready_bytes(op.weights->kind, op.weights->ins);
  const int step = call.strides[op.target];
  for (int m = 0, left = call.rows; left > 0;) {
    int height = left <= DEEP ? left : left < 2 * DEEP ? (left + 1) / 2 : DEEP;
    const char* from = area + (int64_t)m * stride;
    const int64_t place = at + (int64_t)m * step;
    switch (height) {
#define HEIGHT(R) case R: outputs<R, N>(op, number, from, stride, call.buffers[op.target], place, step); break;
      HEIGHT(1)
      HEIGHT(2) HEIGHT(3)
#ifdef __AVX512F__
      HEIGHT(4) HEIGHT(5) HEIGHT(6) HEIGHT(7) HEIGHT(8)
#endif
    }
    m += height;
    left -= height;
  }
}

void product(const Call& call, const Op& op, Team& team, int thread) {
  const Weights& w = *op.weights;
  const float* x = call.buffers[op.source];
  int stride = call.strides[op.source], rows = call.rows;
  const int64_t each = ready_bytes(w.kind, w.ins);
  // few rows are made ready by every thread for itself: less than a wait costs
  bool alone = rows <= 2;
  char* area = call.area + (alone ? (int64_t)thread * 2 * call.area_stride : 0);
  Share own = alone ? Share(rows, 0, 1) : Share(rows, thread, team.size);
  float* scratch = call.scores + (int64_t)thread * call.scores_stride;
  for (int m = own.first; m < own.last; m++) {
    const float* row = x + (int64_t)m * stride;
    if (op.reads_bf16) {
      const uint16_t* halves = (const uint16_t*)x + (int64_t)m * stride;
      for (int i = 0; i < w.ins; i += 16) *(F16*)(scratch + i) = from_bf16(*(const H16*)(halves + i));
      row = scratch;
    } else if (op.norm.kind) {
      normalise(op.norm, row, scratch);
      for (int i = op.norm.width; i < w.ins; i++) scratch[i] = 0;
      row = scratch;
    }
    make_ready(w.kind, row, w.ins, call.coarse, area + m * each);
  }
  if (!alone) team.wait();
  const int pair = op.code == GATED ? 1 : 2;  // outputs of a gated pair are one panel
  const int count = w.outs / 16;
  Share mine((count + 1) / 2, thread, team.size);
  const bool single = rows == 1 && op.code != GATED;  // one stream from memory is read faster
#ifdef __AMX_TILE__
  if (tiled(w, rows)) {
    Tiles tiles;
    for (int p = mine.first; p < mine.last; p++) {
      const int64_t to = op.offset + 16 * pair * p;
      if (2 * p + 1 < count)
        tile_column<2>(call, op, 2 * p, area, to, tiles);
      else
        tile_column<1>(call, op, 2 * p, area, to, tiles);
    }
    tiles.release();
    return;
  }
#endif
  for (int p = mine.first; p < mine.last; p++) {
    const int64_t to = op.offset + 16 * pair * p;
    if (2 * p + 1 < count && !single) {
      column<2>(call, op, 2 * p, area, to);
      continue;
    }
    column<1>(call, op, 2 * p, area, to);
    if (2 * p + 1 < count) column<1>(call, op, 2 * p + 1, area, to + 16);
  }
}

float weight_at(const Weights& w, int out, int in) {
  int64_t p = out / 16, lane = out % 16, ins = w.ins;
  switch (w.kind) {
    case FP32: return ((const float*)w.data)[(p * ins + in) * 16 + lane];
    case BF16: {
      uint32_t bits = ((const uint16_t*)w.data)[(p * ins + (in & ~1)) * 16 + lane * 2 + (in & 1)];
      bits <<= 16;
      float value;
      memcpy(&value, &bits, 4);
      return value;
    }
    case INT8: {
      int code = ((const uint8_t*)w.data)[p * ins * 16 + (in / 4) * 64 + lane * 4 + in % 4];
      return (code - 128) * ((const float*)w.scales)[out];
    }
    default: {
      int byte = ((const uint8_t*)w.data)[p * ins * 8 + (in / 8) * 64 + lane * 4 + in % 4];
      const uint16_t* steps = (const uint16_t*)w.scales + (p * (ins / w.group) + in / w.group) * 32;
      int code = in % 8 < 4 ? byte & 15 : byte >> 4;
      return code * _cvtsh_ss(steps[lane]) + _cvtsh_ss(steps[16 + lane]);
    }
  }
}

void embed(const Call& call, const Op& op, int thread, int threads) {
  int stride = call.strides[op.target], ins = op.weights->ins;
  Share mine(call.rows, thread, threads);
  for (int m = mine.first; m < mine.last; m++) {
    float* x = call.buffers[op.target] + (int64_t)m * stride;
    const float* learnt = call.learnt ? call.learnt + (int64_t)call.slots[m] * ins : nullptr;
    for (int i = 0; i < ins; i++)
      x[i] = weight_at(*op.weights, call.ids[m], i) * op.factor + (learnt ? learnt[i] : 0.0f);
  }
}

struct Fp32Kind {
  typedef float Value;
  ALWAYS F16 load(const Value* p) { return *(const F16*)p; }
  ALWAYS Value store(float x) { return x; }
};
struct Bf16Kind {
  typedef uint16_t Value;
  ALWAYS F16 load(const Value* p) { return from_bf16(*(const H16*)p); }
  ALWAYS Value store(float x) { return to_bf16(x); }
};
struct Int8Kind {
  typedef int8_t Value;
  ALWAYS F16 load(const Value* p) { return from_int8(*(const B16*)p); }
  ALWAYS Value store(float x) { return (int8_t)__builtin_lrintf(x); }
};

// Queries and keys are normalised and turned; keys and values go to their slot of the cache. KEEP
// has no queries: keys and values of a memory's states.
template <class K>
void append(const Call& call, const Op& op, int thread, int threads) {
  typedef typename K::Value Value;
  const Attention& a = *op.attention;
  const bool turns = op.code == SELF && call.cosines;
  const Cache& cache = op.code == SELF ? call.cache : call.memory;
  const int heads = op.code == SELF ? a.heads : 0;
  int parts = heads + 2 * a.groups, half = a.width / 2;
  Share mine(call.rows * parts, thread, threads);
  for (int unit = mine.first; unit < mine.last; unit++) {
    int m = unit / parts, part = unit % parts;
    float* x = call.buffers[op.source] + (int64_t)m * call.strides[op.source] + part * a.padded;
    const Norm& norm = part < heads ? a.q_norm : a.k_norm;
    if (part < heads + a.groups) {
      if (norm.kind) normalise(norm, x, x);
      if (turns) {
        const float* cosines = call.cosines + (int64_t)call.slots[m] * half;
        const float* sines = call.sines + (int64_t)call.slots[m] * half;
        for (int i = 0; i < half; i++) {
          float first = x[i], second = x[half + i];
          x[i] = first * cosines[i] - second * sines[i];
          x[half + i] = second * cosines[i] + first * sines[i];
        }
      }
    }
    if (part < heads) continue;
    bool key = part < heads + a.groups;
    int64_t place = ((int64_t)call.owners[m] * cache.layers + op.layer) * a.groups +
                    (part - heads) % a.groups;
    int slot = call.slots[m];
    float inverse = 1;
    if (sizeof(Value) == 1) {
      float most = 0;
      for (int i = 0; i < a.width; i++) {
        float size = __builtin_fabsf(x[i]);
        most = size <= most ? most : size;  // nan is taken
      }
      (key ? cache.key_scales : cache.value_scales)[place * cache.capacity + slot] = most / 127;
      inverse = most > 0 ? 127 / most : 0;
    }
    if (key) {
      Value* to = (Value*)cache.keys + (place * cache.capacity + (slot & ~15)) * a.padded;
      for (int i = 0; i < a.width; i++) to[16 * i + (slot & 15)] = K::store(x[i] * inverse);
    } else {
      Value* to = (Value*)cache.values + (place * cache.capacity + slot) * a.padded;
      for (int i = 0; i < a.width; i++) to[i] = K::store(x[i] * inverse);
    }
  }
}

struct Seen {  // what queries of one tile read: keys and values of a group, and slots of each query
  const void *keys, *values;
  const float *key_scales, *value_scales;
  const float *queries[TILE], *biases[TILE];  // biases of scores, by slot
  float* outputs[TILE];
  int first[TILE], last[TILE];  // slots from first to before last
};

// A row's sum of values where the tile's isn't finite: a slot that the row doesn't see, of a draft
// that was wrong or of the tokens after it, may hold nan, which a share of 0 doesn't take away.
template <class K>
F16 seen_alone(const Attention& a, const Seen& seen, int r, int lane, const float* shares) {
  const typename K::Value* values = (const typename K::Value*)seen.values + lane;
  F16 parts[2] = {F16{}, F16{}};  // even and odd slots, as a tile sums them
  for (int slot = seen.first[r]; slot < seen.last[r]; slot++)
    parts[slot & 1] += shares[slot] * K::load(values + (int64_t)slot * a.padded);
  return parts[0] + parts[1];
}

template <class K, int R>
void mix(const Attention& a, const Seen& seen, float* scores, int capacity) {
  typedef typename K::Value Value;
  int from = seen.first[0], to = seen.last[0];
  for (int r = 1; r < R; r++) {
    from = seen.first[r] < from ? seen.first[r] : from;
    to = seen.last[r] > to ? seen.last[r] : to;
  }
  from &= ~15;
  static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const I16 lanes = *(const I16*)numbers;
  F16 most[R];
  for (int r = 0; r < R; r++) most[r] = all(-__builtin_inff());
  for (int block = from; block < to; block += 16) {
    const Value* keys = (const Value*)seen.keys + (int64_t)block * a.padded;
    F16 even[R], odd[R];
    for (int r = 0; r < R; r++) even[r] = odd[r] = F16{};
    for (int i = 0; i < a.padded; i += 2) {
      F16 k = K::load(keys + 16 * i), next = K::load(keys + 16 * i + 16);
      for (int r = 0; r < R; r++) {
        even[r] += seen.queries[r][i] * k;
        odd[r] += seen.queries[r][i + 1] * next;
      }
    }
    for (int r = 0; r < R; r++) {
      F16 s = (even[r] + odd[r]) * a.scale;
      if (sizeof(Value) == 1) s *= *(const F16*)(seen.key_scales + block);
      if (seen.biases[r]) s += *(const F16*)(seen.biases[r] + block);
      I16 slots = lanes + wide(block);
      I16 visible = (slots >= wide(seen.first[r])) & (slots < wide(seen.last[r]));
      s = pick(visible, s, all(-__builtin_inff()));
      *(F16*)(scores + (int64_t)r * capacity + block) = s;
      most[r] = larger(s, most[r]);
    }
  }
  float shares[R];
  for (int r = 0; r < R; r++) {
    float* own = scores + (int64_t)r * capacity;
    float top = largest(most[r]);
    F16 total{};
    for (int block = from; block < to; block += 16) {
      F16 s = *(const F16*)(own + block);
      F16 e = pick(s == all(-__builtin_inff()), F16{}, exponential(s - top));
      total += e;
      if (sizeof(Value) == 1) e *= *(const F16*)(seen.value_scales + block);
      *(F16*)(own + block) = e;
    }
    shares[r] = seen.last[r] > seen.first[r] ? 1.0f / sum(total) : 0.0f;
  }
  for (int lane = 0; lane < a.padded; lane += 16) {
    const Value* values = (const Value*)seen.values + lane;
    F16 even[R], odd[R];
    for (int r = 0; r < R; r++) even[r] = odd[r] = F16{};
    for (int slot = from; slot < to; slot += 2) {  // blocks are whole, so there is a next one
      F16 v = K::load(values + (int64_t)slot * a.padded);
      F16 next = K::load(values + (int64_t)(slot + 1) * a.padded);
      for (int r = 0; r < R; r++) {
        even[r] += scores[(int64_t)r * capacity + slot] * v;
        odd[r] += scores[(int64_t)r * capacity + slot + 1] * next;
      }
    }
    for (int r = 0; r < R; r++) {
      F16 y = even[r] + odd[r];
      if (sum(y * 0.0f) != 0) y = seen_alone<K>(a, seen, r, lane, scores + (int64_t)r * capacity);
      *(F16*)(seen.outputs[r] + lane) = y * shares[r];
    }
  }
}

// Tiles of queries that read the same keys: heads of a group where a token stands alone, else
// neighbouring tokens of one row. Threads take them one by one, as they differ in length.
template <class K>
void attend(const Call& call, const Op& op, Team& team, int thread) {
  typedef typename K::Value Value;
  const Attention& a = *op.attention;
  const bool cross = op.code == CROSS;
  const Cache& cache = cross ? call.memory : call.cache;
  const int32_t* owners = cross ? call.memories : call.owners;
  int capacity = cache.capacity;
  int many = a.heads / a.groups;
  float* scores = call.scores + (int64_t)thread * call.scores_stride;
  int unit = 0, mine = team.next.fetch_add(1, std::memory_order_relaxed);
  for (int start = 0, end; start < call.rows; start = end) {
    for (end = start + 1; end < call.rows && owners[end] == owners[start]; end++) {}
    bool by_heads = end - start == 1;
    int across = by_heads ? 1 : end - start;                  // tokens side by side
    int heads_a_tile = by_heads ? (many < TILE ? many : TILE) : 1;
    int tokens_a_tile = by_heads ? 1 : TILE;
    int head_tiles = (many + heads_a_tile - 1) / heads_a_tile;
    int token_tiles = (across + tokens_a_tile - 1) / tokens_a_tile;
    int count = a.groups * head_tiles * token_tiles;
    for (; mine < unit + count; mine = team.next.fetch_add(1, std::memory_order_relaxed)) {
      int number = count - 1 - (mine - unit);  // the last tokens read the most: first
      int group = number % a.groups, head_tile = number / a.groups % head_tiles;
      int token = start + number / a.groups / head_tiles * tokens_a_tile;
      int head = group * many + head_tile * heads_a_tile;
      int rows = by_heads ? many - head_tile * heads_a_tile : end - token;
      rows = rows < (by_heads ? heads_a_tile : TILE) ? rows : (by_heads ? heads_a_tile : TILE);
      Seen seen;
      int64_t place = ((int64_t)owners[token] * cache.layers + op.layer) * a.groups + group;
      seen.keys = (const Value*)cache.keys + place * capacity * a.padded;
      seen.values = (const Value*)cache.values + place * capacity * a.padded;
      seen.key_scales = cache.key_scales ? cache.key_scales + place * capacity : nullptr;
      seen.value_scales = cache.key_scales ? cache.value_scales + place * capacity : nullptr;
      for (int r = 0; r < rows; r++) {
        int m = by_heads ? token : token + r, h = by_heads ? head + r : head;
        seen.queries[r] = call.buffers[op.source] + (int64_t)m * call.strides[op.source] +
                          h * a.padded;
        seen.outputs[r] = call.buffers[op.target] + (int64_t)m * call.strides[op.target] +
                          h * a.padded;
        seen.last[r] = cross ? call.seen[m] : call.slots[m] + 1;
        seen.first[r] = a.window && seen.last[r] > a.window ? seen.last[r] - a.window : 0;
        seen.biases[r] = cross || !call.distances
                             ? nullptr
                             : call.distances + (int64_t)h * (call.reach + 16) + call.reach -
                                   seen.last[r];
      }
      switch (rows) {
#define MIX(R) case R: mix<K, R>(a, seen, scores, capacity); break;
        MIX(1) MIX(2)
#ifdef __AVX512F__
        MIX(3) MIX(4) MIX(5) MIX(6) MIX(7) MIX(8)
#endif
      }
    }
    unit += count;
  }
}

template <class K>
void look(const Call& call, const Op& op, Team& team, int thread) {
  if (op.code != CROSS) append<K>(call, op, thread, team.size);
  if (op.code == KEEP) return;
  if (op.code == SELF) team.wait();
  attend<K>(call, op, team, thread);
}

// Asks memory for the first of what this thread reads in the next product.
void fetch_next(const Call& call, int from, const Team& team, int thread) {
  for (int i = from; i < call.count; i++) {
    const Op& op = call.ops[i];
    if (op.code != PRODUCT && op.code != GATED) continue;
    const Weights& w = *op.weights;
    static const int bytes[] = {64, 32, 16, 8};  // of an input in a panel, by kind
    Share mine((w.outs / 16 + 1) / 2, thread, team.size);
    const char* data = (const char*)w.data + (int64_t)2 * mine.first * w.ins * bytes[w.kind];
    for (int k = 0; k < FETCHED; k += 64) _mm_prefetch(data + k, _MM_HINT_T1);
    return;
  }
}

void work(const Call& call, Team& team, int thread) {
  for (int i = 0; i < call.count; i++) {
    const Op& op = call.ops[i];
    if (op.code == PRODUCT || op.code == GATED) {
      product(call, op, team, thread);
    } else if (op.code == EMBED) {
      embed(call, op, thread, team.size);
    } else if (op.code == NORM) {
      Share mine(call.rows, thread, team.size);
      for (int m = mine.first; m < mine.last; m++)
        normalise(op.norm, call.buffers[op.source] + (int64_t)m * call.strides[op.source],
                  call.buffers[op.target] + (int64_t)m * call.strides[op.target]);
    } else if (call.cache_kind == FP32) {
      look<Fp32Kind>(call, op, team, thread);
    } else if (call.cache_kind == BF16) {
      look<Bf16Kind>(call, op, team, thread);
    } else {
      look<Int8Kind>(call, op, team, thread);
    }
    fetch_next(call, i + 1, team, thread);
    team.wait();
  }
}

}  // namespace

extern "C" {

void bedstone_run(const Call* call) {
  Team team;
#pragma omp parallel num_threads(call->threads)
  {
#pragma omp single
    {
      int found = omp_get_num_threads();
      team.size = call->active < found ? call->active : found;
    }
    if (omp_get_thread_num() < team.size) work(*call, team, omp_get_thread_num());
  }
}

// For the probe: the sum of what a processor reads.
uint64_t bedstone_read(const uint64_t* data, int64_t count, int threads) {
  uint64_t total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
  for (int64_t i = 0; i < count; i++) total += data[i];
  return total;
}
}
