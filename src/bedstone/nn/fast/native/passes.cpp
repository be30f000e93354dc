// What would be many passes over memory, each as one: of training, dropout, and the softmax of
// logits with the loss and its gradient; of beam search, the best tokens, and moves of blocks; of
// sampling, log-probabilities and the draw of a token; of weights, their order.

#include <omp.h>
#include <algorithm>
#include <vector>
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

float largest_of(const float* row, int64_t count) {
  F16 most = all(-__builtin_inff());
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) most = larger(load(row + i), most);
  float top = largest(most);
  for (; i < count; i++) top = row[i] > top ? row[i] : top;
  return top;
}

// The logarithm of the sum of exponentials of what a row has above `top`.
float log_sum(const float* row, int64_t count, float top) {
  F16 sums = all(0.0f);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) sums += exponential(load(row + i) - top);
  float whole = sum(sums);
  for (; i < count; i++) whole += __builtin_expf(row[i] - top);
  return __builtin_logf(whole);
}

struct Best {
  float value, own;
  int64_t beam, token;
};

// The best continuations of a search's beams, best first; of equals the earlier one. A value is the
// token's log-probability plus its beam's total.
void best_of(const float* logits, const float* totals, int64_t each, int64_t count,
             const int64_t* banned, int bans, Best* best, int wanted) {
  for (int i = 0; i < wanted; i++) best[i] = {-__builtin_inff(), -__builtin_inff(), 0, 0};
  for (int64_t beam = 0; beam < each; beam++) {
    const float* row = logits + beam * count;
    float top = largest_of(row, count), less = log_sum(row, count, top), total = totals[beam];
    auto offer = [&](int64_t token) {
      float own = (row[token] - top) - less, value = own + total;
      if (!(value > best[wanted - 1].value)) return;
      for (int k = 0; k < bans; k++)
        if (banned[k] == token) return;
      int place = wanted - 1;
      for (; place > 0 && value > best[place - 1].value; place--) best[place] = best[place - 1];
      best[place] = {value, own, beam, token};
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      // a little below the least: the sums above round in another order
      float least = best[wanted - 1].value - total + less + top;
      if (!(largest(load(row + i)) >= least - 1e-3f - 1e-5f * __builtin_fabsf(least))) continue;
      for (int64_t k = i; k < i + 16; k++) offer(k);
    }
    for (; i < count; i++) offer(i);
  }
}

// How a token is drawn from logits; the names are those of generation/sampling.py.
struct Drawing {
  float divisor;    // the temperature
  int32_t from_top; // whether the largest is taken from the others first
  int64_t top_k;    // 0: all
  float top_p, min_p;
};

enum { LIKELY = 512 };  // tokens that top-p looks at first
enum { PART = 256 };    // probabilities that are summed at a time

struct Place {
  float value, chance;
  int64_t token;
};

bool likelier(const Place& a, const Place& b) {
  return a.value > b.value || (a.value == b.value && a.token < b.token);
}

// Probabilities e^(x - peak), not yet divided by their sum; 0 of what is masked.
ALWAYS F16 chances(F16 x) { return pick(x < all(-87.0f), F16{}, exponential(x)); }

// The `wanted` largest numbers, and those that tie with the last, largest first.
void select_largest(const float* x, int64_t count, int64_t wanted, std::vector<Place>& out) {
  auto above = [](const Place& a, const Place& b) { return a.value > b.value; };
  float least = -__builtin_inff();
  size_t most = 2 * wanted;
  auto shorten = [&]() {
    std::nth_element(out.begin(), out.begin() + (wanted - 1), out.end(), above);
    least = out[wanted - 1].value;
    out.erase(std::remove_if(out.begin(), out.end(),
                             [&](const Place& each) { return each.value < least; }),
              out.end());
  };
  out.clear();
  for (int64_t start = 0; start < count; start += 16) {
    int64_t end = std::min(start + 16, count);
    if (end - start == 16 && !(largest(load(x + start)) >= least)) continue;
    for (int64_t k = start; k < end; k++)
      if (x[k] >= least) out.push_back({x[k], 0.0f, k});
    if (out.size() > most) {
      shorten();
      most = 2 * std::max(out.size(), (size_t)wanted);  // ties don't make it shorter
    }
  }
  shorten();
  std::sort(out.begin(), out.end(), likelier);
}

// Sets the chances of places; their sum.
float take_chances(std::vector<Place>& places, float peak) {
  float total = 0;
  for (size_t start = 0; start < places.size(); start += 16) {
    float some[16] = {};
    size_t end = std::min(start + 16, places.size());
    for (size_t k = start; k < end; k++) some[k - start] = places[k].value - peak;
    store(some, chances(load(some)));
    for (size_t k = start; k < end; k++) total += places[k].chance = some[k - start];
  }
  return total;
}

// Where the cumulative distribution first passes `number`; -1 where no token has a probability.
int64_t invert(std::vector<Place>& places, float total, double number) {
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.token < b.token; });
  double whole = 0, passed = 0;
  for (const Place& each : places) whole += each.chance / total;
  number *= whole * (1 - 1e-12);
  for (const Place& each : places)
    if ((passed += each.chance / total) > number) return each.token;
  return -1;
}

int64_t invert(const float* chance, int64_t count, float total, double number) {
  std::vector<double> parts;
  double whole = 0;
  for (int64_t start = 0; start < count; start += PART) {
    int64_t end = std::min(start + PART, count), k = start;
    double lanes[8] = {}, part = 0;
    for (; k + 8 <= end; k += 8)
      for (int lane = 0; lane < 8; lane++) lanes[lane] += chance[k + lane] / total;
    for (; k < end; k++) part += chance[k] / total;
    for (double each : lanes) part += each;
    parts.push_back(part);
    whole += part;
  }
  number *= whole * (1 - 1e-12);
  double passed = 0;
  size_t part = 0;
  while (part + 1 < parts.size() && passed + parts[part] <= number) passed += parts[part++];
  int64_t last = -1;  // sums in another order may end just below
  for (int64_t k = part * PART; k < count; k++) {
    if (chance[k] > 0) last = k;
    if ((passed += chance[k] / total) > number) return k;
    if (last >= 0 && k + 1 >= (int64_t)(part + 1) * PART) break;
  }
  return last;
}

// A token of softmax(logits / temperature), cut by top-k, top-p and min-p; -1 where there is no such
// distribution. `x` holds V numbers and 16 more.
int64_t draw(const float* row, int64_t count, const Drawing& how, double number, float* x) {
  float top = largest_of(row, count), less = how.from_top ? top : 0.0f;
  float peak = (top - less) / how.divisor;
  if (!__builtin_isfinite(peak)) return -1;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(x + i, (load(row + i) - less) / how.divisor);
  for (; i < count; i++) x[i] = (row[i] - less) / how.divisor;
  std::vector<Place> places;
  const bool all_tokens = !how.top_k && !(how.top_p < 1);
  if (how.top_k) select_largest(x, count, std::min(how.top_k, count), places);
  else if (how.top_p < 1) select_largest(x, count, std::min<int64_t>(LIKELY, count), places);
  float total = 0;
  if (!how.top_k) {  // of all tokens
    for (int64_t k = count; k < count + 16; k++) x[k] = -__builtin_inff();
    F16 sums = all(0.0f);
    for (i = 0; i < count; i += 16) {
      F16 each = chances(load(x + i) - peak);
      if (all_tokens) store(x + i, each);
      sums += each;
    }
    total = sum(sums);
  }
  if (all_tokens) {
    if (how.min_p > 0) {
      F16 least = all(how.min_p * (1.0f / total)), sums = all(0.0f);
      for (i = 0; i < count; i += 16) {
        F16 own = load(x + i), kept = pick(own / total < least, all(0.0f), own);
        store(x + i, kept);
        sums += kept;
      }
      total = sum(sums);
    }
    return invert(x, count, total, number);
  }
  float listed = take_chances(places, peak);
  if (how.top_k) total = listed;
  if (how.top_p < 1) {
    for (int64_t more = 8 * LIKELY; !how.top_k && listed / total < how.top_p; more *= 8) {
      if ((int64_t)places.size() == count) break;  // a flat distribution: all of it is needed
      select_largest(x, count, std::min(more, count), places);
      listed = take_chances(places, peak);
    }
    double passed = 0;
    size_t kept = 0;
    for (; kept < places.size(); kept++) {
      float own = places[kept].chance / total;
      passed += own;
      if (kept && !((float)passed - own < how.top_p)) break;
    }
    places.resize(kept);
  }
  if (how.min_p > 0) {
    float kept = take_chances(places, peak), least = how.min_p * (1.0f / kept);
    places.erase(std::remove_if(places.begin(), places.end(),
                                [&](const Place& each) { return each.chance / kept < least; }),
                 places.end());
  }
  return invert(places, take_chances(places, peak), number);
}

}  // namespace

extern "C" {

// Log-probabilities of `each` tokens of every row.
void bedstone_known(const float* logits, int64_t stride, int64_t rows, int64_t count,
                    const int64_t* tokens, int64_t each, float* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const float* own = logits + row * stride;
    float top = largest_of(own, count), less = log_sum(own, count, top);
    for (int64_t k = row * each; k < (row + 1) * each; k++) out[k] = (own[tokens[k]] - top) - less;
  }
}

// `area` holds V + 16 numbers of each thread.
void bedstone_draw(const float* logits, int64_t stride, int64_t rows, int64_t count,
                   const Drawing* how, const double* numbers, int64_t* tokens, float* area,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    tokens[row] = draw(logits + row * stride, count, *how, numbers[row],
                       area + omp_get_thread_num() * (count + 16));
}

void bedstone_best(const float* logits, const float* totals, int64_t searches, int64_t each,
                   int64_t count, const int64_t* banned, int bans, int wanted, float* values,
                   float* own, int64_t* beams, int64_t* tokens, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t search = 0; search < searches; search++) {
    Best best[64];
    best_of(logits + search * each * count, totals + search * each, each, count, banned, bans, best,
            wanted);
    for (int i = 0; i < wanted; i++) {
      int64_t place = search * wanted + i;
      values[place] = best[i].value, own[place] = best[i].own;
      beams[place] = best[i].beam, tokens[place] = best[i].token;
    }
  }
}

// Blocks `from` are copied to `to`, all read before one is written.
void bedstone_move(char* data, int64_t bytes, const int64_t* from, const int64_t* to, int64_t count,
                   char* area, int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) memcpy(area + i * bytes, data + from[i] * bytes, bytes);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) memcpy(data + to[i] * bytes, area + i * bytes, bytes);
  }
}

// Rows of `words` words of 4 bytes into panels of 16 rows, `wide` words each with a word of every row
// side by side; what is lacking is 0. All are changed by `flip`.
void bedstone_turn(const char* rows, int64_t apart, int64_t count, int64_t words, char* out,
                   int64_t panel, int64_t wide, uint32_t flip, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < (count + 15) / 16; p++) {
    const int64_t held = count - 16 * p < 16 ? count - 16 * p : 16;
    const char* from = rows + 16 * p * apart;
    uint32_t* to = (uint32_t*)(out + p * panel);
    for (int64_t w = 0; w < wide; w++, to += 16)
      for (int64_t r = 0; r < 16; r++) {
        uint32_t word = 0;
        if (r < held && w < words) memcpy(&word, from + r * apart + 4 * w, 4);
        to[r] = word ^ flip;
      }
  }
}

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
