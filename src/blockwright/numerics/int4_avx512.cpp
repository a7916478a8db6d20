// Product of a few rows of bfloat16 with a weight of grouped 4-bit codes, for AVX-512 with bfloat16.
//
//   y[t, o] = sum over groups g of  s[g, o] (sum_k T[c[o, k]] x[t, k] + z[g, o] sum_k x[t, k])
//   with an offset m in place of z:  s[g, o] sum_k T[c[o, k]] x[t, k] + m[g, o] sum_k x[t, k]
//
// T is a table of 16 bfloat16 values (code - 8); two planes have one table each, and their values
// add up.  Every product is exact and every sum is fp32; y alone is rounded, to bfloat16.
//
// A lane of 32 bits is one row.  A unit is 8 inputs of a row in 32 bits: nibble i of its 16-bit
// word p is input 2 i + p, so that shifting right by 4 i brings the pair 2 i, 2 i + 1 to the bottom
// of both words, where vpermw looks both values up (bits above are ignored: the table stands
// there twice) and vdpbf16ps multiplies them by the pair of x.
//
//   units       [tiles, I / 8, planes, 32] uint32, a tile being 32 rows
//   scale_zero  [tiles, G, 2, 32] bfloat16: s, then z or m
//   tables      [planes, 32] bfloat16: the 16 values twice
//   x           [tokens, I] bfloat16;  y [tokens, O] bfloat16

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t TILE = 32;  // rows
constexpr int64_t UNIT = 8;   // inputs
constexpr int64_t MOST_TOKENS = 8;  // at a time; more take turns over a tile in the cache
constexpr int64_t AHEAD = 4096;  // bytes that are asked for before they are needed

struct Task {
  const uint16_t* x;
  const float* sums;
  const uint32_t* units;
  const uint16_t* scale_zero;
  const uint16_t* tables;
  uint16_t* y;
  int64_t in_features, out_features, group;
};

inline __m512 widen(const uint16_t* values) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

inline __m512bh pair_of(const uint16_t* x) {
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x)));
}

// A tile's y for T tokens from ``token`` on.  C chains of sums per row keep the multiplier busy.
template <int T, int C, int PLANES, bool OFFSET>
void multiply_tile(const Task& task, int64_t tile, int64_t token) {
  const int64_t inputs = task.in_features, groups = inputs / task.group;
  const uint32_t* units = task.units + tile * (inputs / UNIT) * PLANES * TILE;
  const uint16_t* scale_zero = task.scale_zero + tile * groups * 2 * TILE;
  const uint16_t* x = task.x + token * inputs;
  const float* sums = task.sums + token * groups;
  __m512i table[PLANES];
  for (int p = 0; p < PLANES; ++p) table[p] = _mm512_loadu_si512(task.tables + p * TILE);
  __m512 y[T][2];
  for (int t = 0; t < T; ++t) y[t][0] = y[t][1] = _mm512_setzero_ps();

  for (int64_t g = 0; g < groups; ++g, scale_zero += 2 * TILE) {
    __m512 sum[T][2][C];
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < C; ++c) sum[t][0][c] = sum[t][1][c] = _mm512_setzero_ps();
    for (int64_t k = g * task.group; k < (g + 1) * task.group; k += UNIT) {
      for (int p = 0; p < PLANES; ++p, units += TILE) {
        _mm_prefetch(reinterpret_cast<const char*>(units) + AHEAD, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(units) + AHEAD + 64, _MM_HINT_T0);
        const __m512i upper = _mm512_loadu_si512(units);
        const __m512i lower = _mm512_loadu_si512(units + TILE / 2);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const __m512i a = _mm512_permutexvar_epi16(_mm512_srli_epi16(upper, 4 * i), table[p]);
          const __m512i b = _mm512_permutexvar_epi16(_mm512_srli_epi16(lower, 4 * i), table[p]);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            const __m512bh pair = pair_of(x + t * inputs + k + 2 * i);
            __m512* at = &sum[t][0][i % C];
            __m512* under = &sum[t][1][i % C];
            *at = _mm512_dpbf16_ps(*at, reinterpret_cast<__m512bh>(a), pair);
            *under = _mm512_dpbf16_ps(*under, reinterpret_cast<__m512bh>(b), pair);
          }
        }
      }
    }
    for (int half = 0; half < 2; ++half) {
      const __m512 scale = widen(scale_zero + half * TILE / 2);
      const __m512 zero = widen(scale_zero + TILE + half * TILE / 2);
      for (int t = 0; t < T; ++t) {
        const __m512 total = _mm512_set1_ps(sums[t * groups + g]);
        for (int c = 1; c < C; ++c)
          sum[t][half][0] = _mm512_add_ps(sum[t][half][0], sum[t][half][c]);
        if (OFFSET) {
          y[t][half] = _mm512_fmadd_ps(zero, total, y[t][half]);
          y[t][half] = _mm512_fmadd_ps(scale, sum[t][half][0], y[t][half]);
        } else {
          const __m512 shifted = _mm512_fmadd_ps(zero, total, sum[t][half][0]);
          y[t][half] = _mm512_fmadd_ps(scale, shifted, y[t][half]);
        }
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int half = 0; half < 2; ++half) {
      const int64_t row = tile * TILE + half * TILE / 2;
      const int64_t kept = std::min<int64_t>(TILE / 2, task.out_features - row);
      if (kept <= 0) continue;
      const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y[t][half]));
      uint16_t* out = task.y + (token + t) * task.out_features + row;
      _mm256_mask_storeu_epi16(out, static_cast<__mmask16>((1u << kept) - 1), rounded);
    }
  }
}

using Multiply = void (*)(const Task&, int64_t, int64_t);

template <int PLANES, bool OFFSET>
Multiply multiply_of(int64_t tokens) {
  switch (tokens) {
    case 1: return multiply_tile<1, 4, PLANES, OFFSET>;
    case 2: return multiply_tile<2, 2, PLANES, OFFSET>;
    case 3: return multiply_tile<3, 2, PLANES, OFFSET>;
    case 4: return multiply_tile<4, 1, PLANES, OFFSET>;
    case 5: return multiply_tile<5, 1, PLANES, OFFSET>;
    case 6: return multiply_tile<6, 1, PLANES, OFFSET>;
    case 7: return multiply_tile<7, 1, PLANES, OFFSET>;
    default: return multiply_tile<8, 1, PLANES, OFFSET>;
  }
}

Multiply multiply_for(int64_t planes, bool offset, int64_t tokens) {
  if (planes == 1) return offset ? multiply_of<1, true>(tokens) : multiply_of<1, false>(tokens);
  return offset ? multiply_of<2, true>(tokens) : multiply_of<2, false>(tokens);
}

void sum_groups(const uint16_t* x, float* sums, int64_t count, int64_t group) {
  for (int64_t at = 0; at < count; ++at, x += group) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < group; k += 16) sum = _mm512_add_ps(sum, widen(x + k));
    sums[at] = _mm512_reduce_add_ps(sum);
  }
}

// The weights of a tile, [I, rows]: each is rounded once, to T (bfloat16 or float).
inline void store(uint16_t* out, __m512 w) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(w)));
}

inline void store(float* out, __m512 w) { _mm512_storeu_ps(out, w); }

template <typename T>
void unpack_tile(const Task& task, int64_t tile, int64_t planes, bool offset, T* out,
                 int64_t stride) {
  const int64_t inputs = task.in_features, groups = inputs / task.group;
  const uint32_t* units = task.units + tile * (inputs / UNIT) * planes * TILE;
  const uint16_t* scale_zero = task.scale_zero + tile * groups * 2 * TILE;
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t k = 0; k < inputs; k += UNIT, units += planes * TILE) {
    const uint16_t* beside = scale_zero + k / task.group * 2 * TILE;
    for (int half = 0; half < 2; ++half) {
      const __m512 scale = widen(beside + half * TILE / 2);
      const __m512 zero = widen(beside + TILE + half * TILE / 2);
      for (int i = 0; i < 4; ++i) {
        __m512 value[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t p = 0; p < planes; ++p) {
          const __m512i table = _mm512_loadu_si512(task.tables + p * TILE);
          const __m512i unit = _mm512_loadu_si512(units + p * TILE + half * TILE / 2);
          const __m512i pair = _mm512_permutexvar_epi16(_mm512_srli_epi16(unit, 4 * i), table);
          const __m512i first = _mm512_slli_epi32(pair, 16);
          const __m512i second = _mm512_and_si512(pair, upper_half);
          value[0] = _mm512_add_ps(value[0], _mm512_castsi512_ps(first));
          value[1] = _mm512_add_ps(value[1], _mm512_castsi512_ps(second));
        }
        for (int each = 0; each < 2; ++each) {
          const __m512 w = offset ? _mm512_fmadd_ps(value[each], scale, zero)
                                  : _mm512_mul_ps(_mm512_add_ps(value[each], zero), scale);
          store(out + (k + 2 * i + each) * stride + half * TILE / 2, w);
        }
      }
    }
  }
}

template <typename T>
void unpack(const Task& task, int64_t planes, bool offset, T* out, int64_t first, int64_t tiles,
            int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t at = 0; at < tiles; ++at)
    unpack_tile(task, first + at, planes, offset, out + at * TILE, tiles * TILE);
}

}  // namespace

// A packed weight, as its owner describes it once.
extern "C" struct BlockwrightInt4Weight {
  const uint32_t* units;
  const uint16_t* scale_zero;
  const uint16_t* tables;
  int64_t in_features, out_features, group, planes, offset;
};

extern "C" void blockwright_int4_product(const BlockwrightInt4Weight* weight, const uint16_t* x,
                                         uint16_t* y, int64_t tokens, int64_t threads) {
  const BlockwrightInt4Weight& w = *weight;
  static thread_local std::vector<float> sums;
  sums.resize(tokens * (w.in_features / w.group));
  sum_groups(x, sums.data(), static_cast<int64_t>(sums.size()), w.group);
  const Task task{x, sums.data(), w.units, w.scale_zero, w.tables, y,
                  w.in_features, w.out_features, w.group};
  const int64_t tiles = (w.out_features + TILE - 1) / TILE;
  const int64_t team = std::min(threads, tiles);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t token = 0; token < tokens; token += MOST_TOKENS) {
      const int64_t some = std::min(MOST_TOKENS, tokens - token);
      multiply_for(w.planes, w.offset != 0, some)(task, tile, token);
    }
  }
}

// Weights of ``tiles`` tiles from ``first`` on, transposed: [I, tiles * 32], bfloat16 or float.
extern "C" void blockwright_int4_unpack(const BlockwrightInt4Weight* weight, void* out,
                                        int64_t wide, int64_t first, int64_t tiles,
                                        int64_t threads) {
  const BlockwrightInt4Weight& w = *weight;
  const Task task{nullptr,       nullptr, w.units,        w.scale_zero, w.tables, nullptr,
                  w.in_features, 0,       w.group};
  const int64_t team = std::min(threads, tiles);
  if (wide)
    unpack(task, w.planes, w.offset != 0, static_cast<float*>(out), first, tiles, team);
  else
    unpack(task, w.planes, w.offset != 0, static_cast<uint16_t*>(out), first, tiles, team);
}
