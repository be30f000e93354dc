// Products of 16 rows by 16 outputs at a time, by the matrix unit (AMX) of newer processors. Panels
// of bf16 and of 8 bits lie in memory as its tiles want them.
//
// A sum of bf16 products is in another order than `dot_bf16` has it, so all rows take this way, one
// row too: then a row's bits don't depend on the rows beside it. Sums of whole numbers are exact.

#pragma once
#include <immintrin.h>

#ifdef __AMX_TILE__

enum { HIGH = 16, BLOCKS = 2 };  // rows of a tile, and tiles above each other

// The shape of tiles, which a thread loads where it changes. 0 to 3 are sums, of two blocks of rows
// and two panels; 4 and 5 are rows, 6 and 7 weights.
struct Tiles {
  int first = -1, second = -1;  // rows of the two blocks
  void shape(int one, int two) {
    if (one == first && two == second) return;
    first = one, second = two;
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    const int rows[8] = {one, one, two, two, one, two, 16, 16};
    for (int t = 0; t < 8; t++) {
      config.bytes[t] = rows[t] ? 64 : 0;
      config.rows[t] = (uint8_t)rows[t];
    }
    _tile_loadconfig(&config);
  }
  void release() {  // tiles in use make a change of threads slow
    if (first < 0) return;
    first = second = -1;
    _tile_release();
  }
};

struct Sums2 {  // of up to two blocks of 16 rows, by 16 outputs of up to two panels
  alignas(64) int32_t of[2][2][HIGH][16];
};

// Adds up bytes `from` to `to` of the rows (a multiple of 64) with what stands beside them in N
// panels, `apart` bytes from each other. Both have 64 bytes of a row for 16 groups of weights.
template <bool WHOLE, int N>
ALWAYS void tile_steps(const char* w, int64_t apart, const char* x, int64_t stride, int rows,
                       int from, int to) {
  for (int at = from; at < to; at += 64) {
    _tile_loadd(6, w + 16 * (int64_t)at, 64);
    if (N > 1) _tile_loadd(7, w + apart + 16 * (int64_t)at, 64);
    _tile_loadd(4, x + at, stride);
#define STEP(SUM, ROWS, PANEL) \
  if (WHOLE) _tile_dpbsud(SUM, ROWS, PANEL); else _tile_dpbf16ps(SUM, ROWS, PANEL)
    STEP(0, 4, 6);
    if (N > 1) { STEP(1, 4, 7); }
    if (rows > HIGH) {
      _tile_loadd(5, x + HIGH * stride + at, stride);
      STEP(2, 5, 6);
      if (N > 1) { STEP(3, 5, 7); }
    }
#undef STEP
  }
}

template <int N>
ALWAYS void tile_zero(int rows) {
  _tile_zero(0);
  if (N > 1) _tile_zero(1);
  if (rows > HIGH) {
    _tile_zero(2);
    if (N > 1) _tile_zero(3);
  }
}

template <int N>
ALWAYS void tile_store(int rows, Sums2& sums) {
  _tile_stored(0, sums.of[0][0], 64);
  if (N > 1) _tile_stored(1, sums.of[0][1], 64);
  if (rows > HIGH) {
    _tile_stored(2, sums.of[1][0], 64);
    if (N > 1) _tile_stored(3, sums.of[1][1], 64);
  }
}

#endif
