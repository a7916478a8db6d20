// Product of a few rows of bfloat16 with a weight of grouped codes, for AVX-512 with bfloat16.
//
//   y[t, o] = sum over groups g of  s[g, o] (sum_k T[c[o, k]] x[t, k] + z[g, o] sum_k x[t, k])
//   with an offset m in place of z:  s[g, o] sum_k T[c[o, k]] x[t, k] + m[g, o] sum_k x[t, k]
//
// A code is one plane of 4 or 2 bits, or a high plane of 4 and a low one of 2 or 4.  T is a table
// of bfloat16 values for each plane, and the values of planes add up.  Every product is exact and
// every sum is fp32; y alone is rounded, to bfloat16.
//
// A lane of 32 bits is one row.  A word is 8 inputs of a row in 32 bits, or 16 in a plane of 2 bits:
// field i of its 16-bit half p is input 2 i + p, so that shifting right by i fields brings the pair
// 2 i, 2 i + 1 to the bottom of both halves, where vpermw looks both values up (bits above are
// ignored: the table repeats) and vdpbf16ps multiplies them by the pair of x.
//
//   words       [tiles, I / 16, planes' bits / 2, 32] uint32, a tile being 32 rows: of every step of
//               16 inputs the words of the high plane, then those of the low one
//   scale_zero  [tiles, G, 2, 32] bfloat16: s, then z or m
//   tables      [planes, 32] bfloat16
//   x           [tokens, I] bfloat16;  y [tokens, O] bfloat16

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t TILE = 32;  // rows
constexpr int64_t STEP = 16;  // inputs
constexpr int64_t MOST_TOKENS = 8;  // at a time; more take turns over a tile in the cache
constexpr int64_t AHEAD = 4096;  // bytes that are asked for before they are needed

struct Task {
  const uint16_t* x;
  const float* sums;
  const uint32_t* words;
  const uint16_t* scale_zero;
  const uint16_t* tables;
  uint16_t* y;
  int64_t in_features, out_features, group;
};

constexpr int64_t words_per_step(int64_t bits) { return bits * STEP / 32; }

inline __m512 widen(const uint16_t* values) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

inline __m512bh pair_of(const uint16_t* x) {
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x)));
}

// Adds a step of one plane: the products of 16 inputs from ``x`` on.
template <int T, int C, int BITS>
inline void add_plane(const uint32_t* words, __m512i table, const uint16_t* x, int64_t stride,
                      __m512 (&sum)[T][2][C]) {
  constexpr int PAIRS = 16 / BITS;  // of a word
#pragma GCC unroll 2
  for (int word = 0; word < words_per_step(BITS); ++word, words += TILE) {
    _mm_prefetch(reinterpret_cast<const char*>(words) + AHEAD, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(words) + AHEAD + 64, _MM_HINT_T0);
    const __m512i upper = _mm512_loadu_si512(words);
    const __m512i lower = _mm512_loadu_si512(words + TILE / 2);
#pragma GCC unroll 8
    for (int i = 0; i < PAIRS; ++i) {
      const __m512i a = _mm512_permutexvar_epi16(_mm512_srli_epi16(upper, BITS * i), table);
      const __m512i b = _mm512_permutexvar_epi16(_mm512_srli_epi16(lower, BITS * i), table);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512bh pair = pair_of(x + t * stride + 2 * (word * PAIRS + i));
        __m512* at = &sum[t][0][i % C];
        __m512* under = &sum[t][1][i % C];
        *at = _mm512_dpbf16_ps(*at, reinterpret_cast<__m512bh>(a), pair);
        *under = _mm512_dpbf16_ps(*under, reinterpret_cast<__m512bh>(b), pair);
      }
    }
  }
}

// A tile's y for T tokens from ``token`` on.  C chains of sums per row keep the multiplier busy.
template <int T, int C, int HIGH, int LOW, bool OFFSET>
void multiply_tile(const Task& task, int64_t tile, int64_t token) {
  const int64_t inputs = task.in_features, groups = inputs / task.group;
  constexpr int64_t WORDS = words_per_step(HIGH + LOW) * TILE;
  const uint32_t* words = task.words + tile * (inputs / STEP) * WORDS;
  const uint16_t* scale_zero = task.scale_zero + tile * groups * 2 * TILE;
  const uint16_t* x = task.x + token * inputs;
  const float* sums = task.sums + token * groups;
  const __m512i table = _mm512_loadu_si512(task.tables);
  const __m512i low_table = LOW ? _mm512_loadu_si512(task.tables + TILE) : table;
  __m512 y[T][2];
  for (int t = 0; t < T; ++t) y[t][0] = y[t][1] = _mm512_setzero_ps();

  for (int64_t g = 0; g < groups; ++g, scale_zero += 2 * TILE) {
    __m512 sum[T][2][C];
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < C; ++c) sum[t][0][c] = sum[t][1][c] = _mm512_setzero_ps();
    for (int64_t k = g * task.group; k < (g + 1) * task.group; k += STEP, words += WORDS) {
      add_plane<T, C, HIGH>(words, table, x + k, inputs, sum);
      if constexpr (LOW)
        add_plane<T, C, LOW>(words + words_per_step(HIGH) * TILE, low_table, x + k, inputs, sum);
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

template <int HIGH, int LOW, bool OFFSET>
Multiply multiply_of(int64_t tokens) {
  switch (tokens) {
    case 1: return multiply_tile<1, 4, HIGH, LOW, OFFSET>;
    case 2: return multiply_tile<2, 2, HIGH, LOW, OFFSET>;
    case 3: return multiply_tile<3, 2, HIGH, LOW, OFFSET>;
    case 4: return multiply_tile<4, 1, HIGH, LOW, OFFSET>;
    case 5: return multiply_tile<5, 1, HIGH, LOW, OFFSET>;
    case 6: return multiply_tile<6, 1, HIGH, LOW, OFFSET>;
    case 7: return multiply_tile<7, 1, HIGH, LOW, OFFSET>;
    default: return multiply_tile<8, 1, HIGH, LOW, OFFSET>;
  }
}

template <bool OFFSET>
Multiply multiply_for(int64_t high, int64_t low, int64_t tokens) {
  if (low == 4) return multiply_of<4, 4, OFFSET>(tokens);
  if (low == 2) return multiply_of<4, 2, OFFSET>(tokens);
  return high == 2 ? multiply_of<2, 0, OFFSET>(tokens) : multiply_of<4, 0, OFFSET>(tokens);
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

// Adds the values of pair ``i`` of a step of one plane.
inline void add_pair(__m512 (&value)[2], const uint32_t* words, int64_t bits, int64_t i,
                     __m512i table) {
  const int64_t pairs = 16 / bits;
  const __m512i word = _mm512_loadu_si512(words + i / pairs * TILE);
  const __m128i shift = _mm_cvtsi64_si128(bits * (i % pairs));
  const __m512i pair = _mm512_permutexvar_epi16(_mm512_srl_epi16(word, shift), table);
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i first = _mm512_slli_epi32(pair, 16);
  const __m512i second = _mm512_and_si512(pair, upper_half);
  value[0] = _mm512_add_ps(value[0], _mm512_castsi512_ps(first));
  value[1] = _mm512_add_ps(value[1], _mm512_castsi512_ps(second));
}

template <typename T>
void unpack_tile(const Task& task, int64_t tile, int64_t high, int64_t low, bool offset, T* out,
                 int64_t stride) {
  const int64_t inputs = task.in_features, groups = inputs / task.group;
  const int64_t step_words = words_per_step(high + low) * TILE;
  const uint32_t* words = task.words + tile * (inputs / STEP) * step_words;
  const uint16_t* scale_zero = task.scale_zero + tile * groups * 2 * TILE;
  const __m512i table = _mm512_loadu_si512(task.tables);
  const __m512i low_table = low ? _mm512_loadu_si512(task.tables + TILE) : table;
  for (int64_t k = 0; k < inputs; k += STEP, words += step_words) {
    const uint16_t* beside = scale_zero + k / task.group * 2 * TILE;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t at = half * TILE / 2;
      const __m512 scale = widen(beside + at), zero = widen(beside + TILE + at);
      for (int64_t i = 0; i < STEP / 2; ++i) {
        __m512 value[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        add_pair(value, words + at, high, i, table);
        if (low) add_pair(value, words + words_per_step(high) * TILE + at, low, i, low_table);
        for (int each = 0; each < 2; ++each) {
          const __m512 w = offset ? _mm512_fmadd_ps(value[each], scale, zero)
                                  : _mm512_mul_ps(_mm512_add_ps(value[each], zero), scale);
          store(out + (k + 2 * i + each) * stride + at, w);
        }
      }
    }
  }
}

template <typename T>
void unpack(const Task& task, int64_t high, int64_t low, bool offset, T* out, int64_t first,
            int64_t tiles, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t at = 0; at < tiles; ++at)
    unpack_tile(task, first + at, high, low, offset, out + at * TILE, tiles * TILE);
}

}  // namespace

// A packed weight, as its owner describes it once; bits of its planes, 0 for no low one.
extern "C" struct BlockwrightInt4Weight {
  const uint32_t* words;
  const uint16_t* scale_zero;
  const uint16_t* tables;
  int64_t in_features, out_features, group, high, low, offset;
};

extern "C" void blockwright_int4_product(const BlockwrightInt4Weight* weight, const uint16_t* x,
                                         uint16_t* y, int64_t tokens, int64_t threads) {
  const BlockwrightInt4Weight& w = *weight;
  static thread_local std::vector<float> sums;
  sums.resize(tokens * (w.in_features / w.group));
  sum_groups(x, sums.data(), static_cast<int64_t>(sums.size()), w.group);
  const Task task{x, sums.data(), w.words, w.scale_zero, w.tables, y,
                  w.in_features, w.out_features, w.group};
  const int64_t tiles = (w.out_features + TILE - 1) / TILE;
  const int64_t team = std::min(threads, tiles);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t token = 0; token < tokens; token += MOST_TOKENS) {
      const int64_t some = std::min(MOST_TOKENS, tokens - token);
      const Multiply multiply = w.offset ? multiply_for<true>(w.high, w.low, some)
                                         : multiply_for<false>(w.high, w.low, some);
      multiply(task, tile, token);
    }
  }
}

// Weights of ``tiles`` tiles from ``first`` on, transposed: [I, tiles * 32], bfloat16 or float.
extern "C" void blockwright_int4_unpack(const BlockwrightInt4Weight* weight, void* out,
                                        int64_t wide, int64_t first, int64_t tiles,
                                        int64_t threads) {
  const BlockwrightInt4Weight& w = *weight;
  const Task task{nullptr,       nullptr, w.words,        w.scale_zero, w.tables, nullptr,
                  w.in_features, 0,       w.group};
  const int64_t team = std::min(threads, tiles);
  const bool offset = w.offset != 0;
  if (wide)
    unpack(task, w.high, w.low, offset, static_cast<float*>(out), first, tiles, team);
  else
    unpack(task, w.high, w.low, offset, static_cast<uint16_t*>(out), first, tiles, team);
}
