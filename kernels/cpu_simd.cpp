// The engine of the cpu target, compiled once per SIMD level (cpu_simd.h); cpu.cpp chooses one at run time.
//
// Per tile of query rows, for each block of KV rows:
//   1. pack V: rows side by side in panels of columns, two keys to a word when words are pairs of bfloat16;
//   2. scores = K Q^T: a vector holds one key's scores of 16 query rows, so K is read where it lies, one word at a time
//      broadcast from each row, and only Q was transposed, once per tile;
//   3. online softmax down the keys, in every lane on its own: no reduction across lanes. Weights replace the scores;
//   4. out = out * rescale + weights V: a vector holds 16 columns of one query row, weights are broadcast.
// Steps 2 and 4 are one multiply-add over words (Dot): floats, or pairs of bfloat16 where the CPU multiplies those.
// Levels without that widen bfloat16 while packing. Scores, statistics, weights' sums and output are fp32 throughout.
// The order of every sum depends on the arguments alone, so results are bitwise repeatable at any number of threads.
#include "cpu_engine.h"
#include "cpu_simd.h"

namespace flash_dsa {
namespace {

struct bfloat16 {
  uint16_t bits;
};

// Words of a K or Q row handled before the next: this many of a full tile's Q are 24 KiB, which stay in L1 while every
// key of the block passes by.
constexpr int kDepth = 96;
// Words between two steps of the prefetcher; divides every depth, since d_qk is a multiple of 64.
constexpr int kStep = 8;
static_assert(kDepth % kStep == 0);
// Columns of V packed together.
constexpr int kPanel = kOutVectors * kLanes;

FLASH_DSA_INLINE int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Rows of a tile as stored: whole vectors.
FLASH_DSA_INLINE int padded_rows(const CpuTile& tile) { return round_up(tile.rows, kLanes); }

// True where words of In are what Dot multiplies, as they lie in memory.
template <class In, class Dot>
constexpr bool kAsIs = sizeof(In) * Dot::kPerWord == sizeof(uint32_t);

// One vector of words from consecutive elements of a row.
template <class In, class Dot>
FLASH_DSA_INLINE UVec load_words(const In* row, int word) {
  if constexpr (kAsIs<In, Dot>) {
    return load<UVec>(row + word * Dot::kPerWord);
  } else {
    return load_bf16(row + word) << 16;
  }
}

// Queries, transposed to [word][row] by blocks of 4 x 4 words; rows that pad the last vector are 0.
template <class In, class Dot>
void pack_queries(const CpuTile& tile, uint32_t* q) {
  typedef uint16_t HalfQuad __attribute__((vector_size(8)));
  const int rows = padded_rows(tile), words = tile.d_qk / Dot::kPerWord;
  for (int row = 0; row < rows; row += 4) {
    for (int word = 0; word < words; word += 4) {
      Quad in[4];
      unroll<4>([&](auto i) {
        const In* source = static_cast<const In*>(tile.q[row + i.value < tile.rows ? row + i.value : 0]);
        if constexpr (kAsIs<In, Dot>) {
          in[i.value] = load<Quad>(source + word * Dot::kPerWord);
        } else {
          in[i.value] = __builtin_convertvector(load<HalfQuad>(source + word), Quad) << 16;
        }
        if (row + i.value >= tile.rows) in[i.value] = Quad{};
      });
      const Quad a = shuffled<0, 4, 1, 5>(in[0], in[1]), b = shuffled<0, 4, 1, 5>(in[2], in[3]);
      const Quad c = shuffled<2, 6, 3, 7>(in[0], in[1]), d = shuffled<2, 6, 3, 7>(in[2], in[3]);
      uint32_t* target = q + word * rows + row;
      store(target, shuffled<0, 1, 4, 5>(a, b));
      store(target + rows, shuffled<2, 3, 6, 7>(a, b));
      store(target + 2 * rows, shuffled<0, 1, 4, 5>(c, d));
      store(target + 3 * rows, shuffled<2, 3, 6, 7>(c, d));
    }
  }
}

// Values as [panel][word of keys][column of panel]. Panels keep what one micro-kernel reads contiguous: rows lie a
// power of two apart where there are many heads, and would fall on the same few cache lines.
template <class In, class Dot>
void pack_values(const CpuTile& tile, const CpuKeys& keys, uint32_t* v) {
  const int words = round_up(keys.count, Dot::kPerWord) / Dot::kPerWord;
  for (int word = 0; word < words; ++word) {
    const int key = word * Dot::kPerWord;
    const In* first = static_cast<const In*>(keys.v[key]);
    for (int column = 0; column < tile.d_v; column += kLanes) {
      uint32_t* target = v + (column / kPanel * words + word) * kPanel + column % kPanel;
      if constexpr (Dot::kPerWord == 1) {
        store(target, load_words<In, Dot>(first, column));
      } else {
        UVec pair = load_bf16(first + column);
        // The missing partner of the last key is 0; its weight is 0 too.
        if (key + 1 < keys.count) pair |= load_bf16(static_cast<const In*>(keys.v[key + 1]) + column) << 16;
        store(target, pair);
      }
    }
  }
}

// Spreads the hints evenly over the multiply-adds of a block, which leave the memory ports idle: in bursts, they would
// wait for each other. The hardware does not see them coming: gathered rows, and the next tile's queries, are short.
class Prefetcher {
 public:
  Prefetcher(const CpuAhead& ahead, int64_t row_bytes, int64_t steps)
      : row_(ahead.row), end_(ahead.row + ahead.count), row_bytes_(row_bytes) {
    lines_per_step_ = static_cast<int>((ahead.count * ((row_bytes + kLine - 1) / kLine) + steps - 1) / steps);
  }

  FLASH_DSA_INLINE void step() {
    for (int i = 0; i < lines_per_step_ && row_ != end_; ++i) {
      __builtin_prefetch(static_cast<const char*>(*row_) + offset_, 0, 2);  // into L2: L1 holds the queries
      offset_ += kLine;
      if (offset_ < row_bytes_) continue;
      offset_ = 0;
      ++row_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const void* const* row_;
  const void* const* const end_;
  const int64_t row_bytes_;
  int64_t offset_ = 0;
  int lines_per_step_;
};

// scores[key][row] += K Q^T over `depth` words, of Keys keys and Vectors vectors of rows.
template <class Dot, int Vectors, int Keys>
void score_group(const uint32_t* q, int rows, const uint32_t* const* k, int start, int depth, float* scores,
                 Prefetcher& prefetcher) {
  Vec sum[Keys][Vectors];
  const uint32_t* key[Keys];
  unroll<Keys>([&](auto j) {
    key[j.value] = k[j.value] + start;
    unroll<Vectors>([&](auto i) {
      sum[j.value][i.value] = start == 0 ? Vec{} : load<Vec>(scores + j.value * rows + i.value * kLanes);
    });
  });
  q += start * rows;
  for (int step = 0; step < depth; step += kStep) {
    prefetcher.step();
    for (int word = step; word < step + kStep; ++word, q += rows) {
      UVec query[Vectors];
      unroll<Vectors>([&](auto i) { query[i.value] = load<UVec>(q + i.value * kLanes); });
      unroll<Keys>([&](auto j) {
        const UVec one = splat_word(key[j.value] + word);
        unroll<Vectors>([&](auto i) { sum[j.value][i.value] = Dot::add(sum[j.value][i.value], query[i.value], one); });
      });
    }
  }
  unroll<Keys>([&](auto j) {
    unroll<Vectors>([&](auto i) { store(scores + j.value * rows + i.value * kLanes, sum[j.value][i.value]); });
  });
}

// The same for all keys of the block and Vectors vectors of rows. Fewer vectors leave registers for more keys.
template <class Dot, int Vectors>
void score_rows(const uint32_t* q, int rows, const uint32_t* const* k, int count, int start, int depth, float* scores,
                Prefetcher& prefetcher) {
  constexpr int kKeys = Vectors == kRowVectors ? kScoreKeys : kNarrowScoreKeys;
  static_assert(kCpuBlockKeys % kKeys == 0);
  for (int key = 0; key < count; key += kKeys) {
    score_group<Dot, Vectors, kKeys>(q, rows, k + key, start, depth, scores + key * rows, prefetcher);
  }
}

// Raw scores of the block. Keys are padded to a whole group with copies of the first one, whose scores nobody reads.
template <class In, class Dot>
void score_block(const CpuTile& tile, const CpuKeys& keys, const CpuAhead& ahead, CpuScratch& scratch) {
  const int rows = padded_rows(tile), words = tile.d_qk / Dot::kPerWord;
  const uint32_t* k[kCpuBlockKeys];
  for (int key = 0; key < keys.count; ++key) {
    if constexpr (kAsIs<In, Dot>) {
      k[key] = static_cast<const uint32_t*>(keys.k[key]);
    } else {
      uint32_t* wide = scratch.k + key * words;
      for (int word = 0; word < words; word += kLanes) {
        store(wide + word, load_words<In, Dot>(static_cast<const In*>(keys.k[key]), word));
      }
      k[key] = wide;
    }
  }
  for (int key = keys.count; key < kCpuBlockKeys; ++key) k[key] = k[0];
  // Groups of keys are no longer than 8, so there are at least this many steps.
  Prefetcher prefetcher(ahead, tile.d_qk * int64_t{sizeof(In)}, (keys.count + 7) / 8 * (words / kStep));
  for (int start = 0; start < words; start += kDepth) {
    const int depth = words - start < kDepth ? words - start : kDepth;
    int row = 0;
    for (; row + kRowVectors * kLanes <= rows; row += kRowVectors * kLanes) {
      score_rows<Dot, kRowVectors>(scratch.q + row, rows, k, keys.count, start, depth, scratch.scores + row,
                                   prefetcher);
    }
    // The vectors left over; each number of them is a micro-kernel of its own.
    const int left = (rows - row) / kLanes;
    unroll<kRowVectors - 1>([&](auto i) {
      if (left != i.value + 1) return;
      score_rows<Dot, i.value + 1>(scratch.q + row, rows, k, keys.count, start, depth, scratch.scores + row,
                                   prefetcher);
    });
  }
}

// Scores of keys that a row does not see become -inf.
void hide_scores(const CpuTile& tile, const CpuKeys& keys, float* scores) {
  const int rows = padded_rows(tile);
  for (int row = 0; row < rows; row += kLanes) {
    IVec visible{};
    for (int i = 0; i < kLanes && row + i < tile.rows; ++i) visible[i] = keys.visible[row + i];
    for (int key = 0; key < keys.count; ++key) {
      float* score = scores + key * rows + row;
      store(score, visible > key ? load<Vec>(score) : splat(-__builtin_inff()));
    }
  }
}

// Turns the block's scores into weights exp(score - row_max) and brings the running maximum and sum up to date.
// Weights are stored as Dot's words of keys; the sum is of the unrounded ones.
template <class Dot>
void softmax_block(const CpuTile& tile, const CpuKeys& keys, CpuScratch& scratch) {
  const int rows = padded_rows(tile);
  const Vec scale = splat(tile.scale), minus_infinity = splat(-__builtin_inff());
  for (int row = 0; row < rows; row += kLanes) {
    float* scores = scratch.scores + row;
    Vec largest = minus_infinity;
    for (int key = 0; key < keys.count; ++key) largest = larger(load<Vec>(scores + key * rows), largest);
    const Vec before = load<Vec>(scratch.row_max + row);
    const Vec now = larger(largest * scale, before);
    // A row that has seen nothing yet subtracts 0 instead of -inf, so that its weights are 0 and not NaN.
    const Vec offset = now > minus_infinity ? now : Vec{};
    const Vec rescale = exp_nonpositive(before - offset);
    Vec sum{};
    const auto weight = [&](int key) {
      const Vec value = exp_nonpositive(multiply_add(load<Vec>(scores + key * rows), scale, -offset));
      sum += value;
      return value;
    };
    // Word w replaces the scores of key w, which have been read by then.
    if constexpr (Dot::kPerWord == 1) {
      for (int key = 0; key < keys.count; ++key) store(scores + key * rows, weight(key));
    } else {
      for (int key = 0; key < keys.count; key += 2) {
        const Vec low = weight(key), high = key + 1 < keys.count ? weight(key + 1) : Vec{};
        store(scores + key / 2 * rows, (round_bf16(low) >> 16) | (round_bf16(high) & 0xffff0000u));
      }
    }
    store(scratch.row_max + row, now);
    store(scratch.rescale + row, rescale);
    store(scratch.row_sum + row, multiply_add(load<Vec>(scratch.row_sum + row), rescale, sum));
  }
}

// out[row][panel] = out * rescale + weights V of Rows rows.
template <class Dot, int Rows>
void out_group(const uint32_t* weights, int rows, const uint32_t* v, int words, const float* rescale, bool empty,
               float* out, int d_v) {
  Vec sum[Rows][kOutVectors];
  unroll<Rows>([&](auto j) {
    unroll<kOutVectors>([&](auto i) {
      sum[j.value][i.value] =
          empty ? Vec{} : load<Vec>(out + j.value * d_v + i.value * kLanes) * splat(rescale[j.value]);
    });
  });
  for (int word = 0; word < words; ++word, weights += rows, v += kPanel) {
    UVec value[kOutVectors];
    unroll<kOutVectors>([&](auto i) { value[i.value] = load<UVec>(v + i.value * kLanes); });
    unroll<Rows>([&](auto j) {
      const UVec one = splat_word(weights + j.value);
      unroll<kOutVectors>(
          [&](auto i) { sum[j.value][i.value] = Dot::add(sum[j.value][i.value], value[i.value], one); });
    });
  }
  unroll<Rows>([&](auto j) {
    unroll<kOutVectors>([&](auto i) { store(out + j.value * d_v + i.value * kLanes, sum[j.value][i.value]); });
  });
}

template <class Dot>
void out_block(const CpuTile& tile, const CpuKeys& keys, CpuScratch& scratch) {
  const int rows = padded_rows(tile), words = round_up(keys.count, Dot::kPerWord) / Dot::kPerWord;
  const uint32_t* weights = reinterpret_cast<const uint32_t*>(scratch.scores);
  for (int column = 0; column < tile.d_v; column += kPanel) {
    const uint32_t* v = scratch.v + column * words;
    float* out = scratch.out + column;
    int row = 0;
    for (; row + kOutRows <= tile.rows; row += kOutRows) {
      out_group<Dot, kOutRows>(weights + row, rows, v, words, scratch.rescale + row, scratch.empty,
                               out + row * tile.d_v, tile.d_v);
    }
    unroll<kOutRows - 1>([&](auto i) {
      if (tile.rows - row != i.value + 1) return;
      out_group<Dot, i.value + 1>(weights + row, rows, v, words, scratch.rescale + row, scratch.empty,
                                  out + row * tile.d_v, tile.d_v);
    });
  }
}

template <class In, class Dot>
void begin(const CpuTile& tile, CpuScratch& scratch) {
  pack_queries<In, Dot>(tile, scratch.q);
  for (int row = 0; row < kCpuTileRows; ++row) {
    scratch.row_max[row] = -__builtin_inff();
    scratch.row_sum[row] = 0.0f;
  }
  scratch.empty = true;
}

template <class In, class Dot>
void block(const CpuTile& tile, const CpuKeys& keys, const CpuAhead& ahead, CpuScratch& scratch) {
  pack_values<In, Dot>(tile, keys, scratch.v);
  score_block<In, Dot>(tile, keys, ahead, scratch);
  if (keys.visible != nullptr) hide_scores(tile, keys, scratch.scores);
  softmax_block<Dot>(tile, keys, scratch);
  out_block<Dot>(tile, keys, scratch);
  scratch.empty = false;
}

template <class In>
void store_rows(const CpuTile& tile, const float* factor, void* const* out, const CpuScratch& scratch) {
  for (int row = 0; row < tile.rows; ++row) {
    In* target = static_cast<In*>(out[row]);
    const float* source = scratch.out + row * tile.d_v;
    for (int column = 0; column < tile.d_v; column += kLanes) {
      // A row without weight is 0 although its sums may be uninitialised, or NaN from keys that only other rows see.
      const Vec value = factor[row] == 0.0f ? Vec{} : load<Vec>(source + column) * splat(factor[row]);
      if constexpr (sizeof(In) == sizeof(float)) {
        store(target + column, value);
      } else {
        store(target + column, __builtin_convertvector(round_bf16(value) >> 16, HalfVec));
      }
    }
  }
}

template <class In, class Dot>
constexpr CpuEngine kEngine = {begin<In, Dot>, block<In, Dot>, store_rows<In>};

#define FLASH_DSA_STRING_(text) #text
#define FLASH_DSA_STRING(text) FLASH_DSA_STRING_(text)

}  // namespace

const CpuLevel FLASH_DSA_PASTE(cpu_level_, FLASH_DSA_CPU_LEVEL) = {FLASH_DSA_STRING(FLASH_DSA_CPU_LEVEL),
                                                                   kEngine<bfloat16, DotBf16>, kEngine<float, DotF32>};

}  // namespace flash_dsa
