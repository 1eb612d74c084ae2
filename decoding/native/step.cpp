// What a decoder does with a few new tokens, as one pass over the weights: on a CPU a token costs the time in which its
// weights come from memory, as long as nothing else gets in the way. So there is one parallel region for the whole
// model, in which every thread takes its share of the rows of each matrix, and barriers where one layer needs another.
//
// Weights are fp32, bf16 or int8 with a scale for each row; sums are fp32 in all cases. The sum of a token is taken in
// the same order whatever else is in the batch, so that a token's logits are the same to the last bit alone, among
// others, or when several of its text are read at once.
//
// Rows of matrices are outputs, as in torch. N tokens are B sequences of T each; a sequence has a cache of `slots`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Rows of a matrix that are taken at once, and of them with 4 tokens: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int ROWS = 8;
constexpr int TILE_ROWS = 4;
#else
constexpr int LANES = 8;
constexpr int ROWS = 6;
constexpr int TILE_ROWS = 3;
#endif
constexpr int WEIGHED = 64 / LANES;  // registers of values that attention sums up at once
constexpr int AHEAD = 16;            // rows that are asked of the memory before they are needed
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1)));

struct BFloat16 {
    uint16_t bits;
};

// --- Numbers -----------------------------------------------------------------------------------------------------

inline float number(float value) { return value; }
inline float number(int8_t value) { return value; }
inline float number(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

inline Lanes load(const float *from) { return *reinterpret_cast<const Lanes *>(from); }
inline void store(float *to, const Lanes &lanes) { *reinterpret_cast<Lanes *>(to) = lanes; }

// Compilers make many instructions of these two conversions where the processor has one.
inline Lanes load(const int8_t *from) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#elif defined(__AVX2__)
    return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#else
    return __builtin_convertvector(*reinterpret_cast<const Bytes *>(from), Lanes);
#endif
}
inline Lanes load(const BFloat16 *from) {
#if defined(__AVX512F__)
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    return (Lanes)_mm512_slli_epi32(bits, 16);
#elif defined(__AVX2__)
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
    return (Lanes)_mm256_slli_epi32(bits, 16);
#else
    return (Lanes)(__builtin_convertvector(*reinterpret_cast<const Halves *>(from), Bits) << 16);
#endif
}

inline void store(float *to, float value) { *to = value; }
inline void store(BFloat16 *to, float value) {  // to the nearest, to even where two are as near
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// a * b + c, rounded once where the processor can. The compiler itself joins no products and sums (-ffp-contract=off):
// it would do so in one copy of a loop and not in another, and the same token would come out in two ways.
inline Lanes multiply_add(const Lanes &a, const Lanes &b, const Lanes &c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    Lanes result;
    for (int lane = 0; lane < LANES; ++lane) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return result;
#else
    return a * b + c;
#endif
}

// The same into the register of the sum: the compiler puts it elsewhere, moves it back, and has too few registers then.
inline void accumulate(Lanes &sum, const Lanes &a, const Lanes &b) {
#if defined(__AVX2__) && defined(__FMA__)
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    sum = multiply_add(a, b, sum);
#endif
}

// Keeps the compiler from loading the same numbers anew for each of several products.
inline void keep_in_register(Lanes &lanes) {
#if defined(__AVX2__)
    asm("" : "+v"(lanes));
#else
    (void)lanes;
#endif
}

inline float sum(const Lanes &lanes) {  // of the halves, and so on, in this order everywhere
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256 second = _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)lanes, 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)lanes), second);
#else
    const __m256 eight = (__m256)lanes;
#endif
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float halves[LANES];
    std::memcpy(halves, &lanes, sizeof(lanes));
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) halves[lane] += halves[lane + half];
    return halves[0];
#endif
}

// e^x for x <= 88: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], with a relative error of some 1e-7.
inline Lanes exponential(Lanes x) {
    const Lanes lowest = Lanes{} - 87.0f;
    x = x < lowest ? lowest : x;
    const Lanes scaled = x * 1.44269504f;
    const Integers n = __builtin_convertvector(scaled + (scaled < 0.0f ? Lanes{} - 0.5f : Lanes{} + 0.5f), Integers);
    const Lanes whole = __builtin_convertvector(n, Lanes);
    const Lanes rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Lanes series = Lanes{} + 1.0f / 5040;
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        series = multiply_add(series, rest, Lanes{} + factor);
    const Integers power = (n + 127) << 23;
    Lanes result;
    std::memcpy(&result, &power, sizeof(result));
    return result * series;
}

// --- What a model is made of; step.py has the same structures ------------------------------------------------------

enum Kind : int32_t { FP32 = 0, BF16 = 1, INT8 = 2 };

struct Matrix {
    const void *weights;
    const float *scales, *bias;  // of the rows: scales for int8; null without
    int64_t rows, columns, kind;
};

struct Norm {
    const float *weight;  // null where there is no norm
    const float *bias;    // null for a root mean square, else of LayerNorm
    float epsilon;
};

struct Attention {
    Norm norm;  // none where a block has no such attention
    Matrix query, key, value, out;
    Norm query_norm, key_norm;
};

enum Activation : int64_t { SWIGLU, GELU, GELU_TANH };

struct Block {
    Attention own, cross;  // cross.key and cross.value are not needed: their results are in the cache
    Norm feed_forward_norm;
    Matrix gate, up, down;  // gate for SWIGLU alone
    Activation activation;
};

struct Model {
    int64_t layers, width, heads, kv_heads, head_size, hidden;  // hidden: of the block that has most
    float embedding_scale;
    Matrix embedding;
    const float *positions;   // a row for each position; null without
    const float *cos, *sin;   // the same, of head_size; null without
    Norm norm;
    Matrix head;
    const Block *blocks;
};

struct Stored {  // what a layer's cache holds
    void *keys, *values;
};

// What belongs to one call: a model is read by several threads at once.
struct Tokens {
    const int64_t *ids;         // B x T
    const int64_t *lengths;     // tokens in the cache, of each sequence
    const Stored *own, *cross;  // of each block; cross is null without cross-attention
    int64_t batch, count;       // B, T
    int64_t slots, cache_kind;
    const int64_t *memory_lengths;       // of what cross-attention looks at, the same
    int64_t memory_slots, cross_rotary;  // cross_rotary: whether its queries are rotated
    float *logits;                       // N x vocabulary
    int64_t threads;
};

// --- Products ----------------------------------------------------------------------------------------------------

// Memory that will be needed soon: `pace` bytes are asked for with every LANES columns.
struct Ahead {
    const char *memory;
    int64_t pace;
    void next() {
        for (int64_t byte = 0; byte < pace; byte += 64) __builtin_prefetch(memory + byte, 0, 2);
        memory += pace;
    }
};

// Dot products of R rows with T tokens. Each is one chain of sums over the columns, whatever R and T are.
template <int R, int T, class Weight>
inline void dots(const Weight *rows, const float *tokens, int64_t columns, Ahead ahead, float results[R][T]) {
    Lanes sums[R][T] = {};
    int64_t column = 0;
    for (; column + LANES <= columns; column += LANES) {
        Lanes weights[R];
#pragma GCC unroll 8
        for (int row = 0; row < R; ++row) weights[row] = load(rows + row * columns + column);
        ahead.next();
#pragma GCC unroll 4
        for (int token = 0; token < T; ++token) {
            Lanes inputs = load(tokens + token * columns + column);
            keep_in_register(inputs);
#pragma GCC unroll 8
            for (int row = 0; row < R; ++row) accumulate(sums[row][token], weights[row], inputs);
        }
    }
    // Unrolled too, or else the sums could not stay in registers: a place in them would not be known.
#pragma GCC unroll 8
    for (int row = 0; row < R; ++row)
#pragma GCC unroll 4
        for (int token = 0; token < T; ++token) {
            float total = sum(sums[row][token]);
            for (int64_t rest = column; rest < columns; ++rest)
                total = std::fma(number(rows[row * columns + rest]), tokens[token * columns + rest], total);
            results[row][token] = total;
        }
}

struct Share {
    int64_t thread, threads;
    // This thread's part of `count` things, in whole groups.
    void of(int64_t count, int64_t group, int64_t &begin, int64_t &end) const {
        const int64_t groups = (count + group - 1) / group, each = (groups + threads - 1) / threads;
        begin = std::min(count, thread * each * group);
        end = std::min(count, (thread + 1) * each * group);
    }
};

template <int R, int T, class Weight, class Result>
inline void tile(const Matrix &matrix, int64_t row, const float *tokens, int64_t token, Ahead ahead, Result &&result) {
    float results[R][T];
    const Weight *rows = static_cast<const Weight *>(matrix.weights) + row * matrix.columns;
    dots<R, T>(rows, tokens + token * matrix.columns, matrix.columns, ahead, results);
    for (int r = 0; r < R; ++r) {
        const float scale = matrix.scales ? matrix.scales[row + r] : 1.0f, bias = matrix.bias ? matrix.bias[row + r] : 0.0f;
        for (int t = 0; t < T; ++t) result(token + t, row + r, results[r][t] * scale + bias);
    }
}

template <int R, class Weight, class Result>
inline void row_group(const Matrix &matrix, int64_t row, const float *tokens, int64_t count, Result &&result) {
    constexpr int PART = std::min(R, TILE_ROWS);
    const int64_t fours = count / 4, tiles = fours * (R / PART) + count % 4, bytes = R * sizeof(Weight);
    Ahead ahead{static_cast<const char *>(matrix.weights) + (row + AHEAD) * matrix.columns * sizeof(Weight),
                bytes * LANES / tiles};  // each tile asks for its part of as many rows as are computed here
    const auto next = [&] {
        const Ahead part = ahead;
        ahead.memory += part.pace * (matrix.columns / LANES);
        return part;
    };
    for (int part = 0; part < R; part += PART)
        for (int64_t four = 0; four < fours; ++four)
            tile<PART, 4, Weight>(matrix, row + part, tokens, 4 * four, next(), result);
    for (int64_t token = 4 * fours; token < count; ++token)
        tile<R, 1, Weight>(matrix, row, tokens, token, next(), result);
}

template <class Weight, class Result>
inline void product_of(const Matrix &matrix, const float *tokens, int64_t count, Share share, Result &&result) {
    int64_t row, end;
    share.of(matrix.rows, ROWS, row, end);
    for (; row + ROWS <= end; row += ROWS) row_group<ROWS, Weight>(matrix, row, tokens, count, result);
    for (; row < end; ++row) row_group<1, Weight>(matrix, row, tokens, count, result);
}

// Calls `result(token, row, value)` for each token and each row of this thread's share.
template <class Result>
inline void product(const Matrix &matrix, const float *tokens, int64_t count, Share share, Result &&result) {
    if (matrix.kind == INT8) return product_of<int8_t>(matrix, tokens, count, share, result);
    if (matrix.kind == BF16) return product_of<BFloat16>(matrix, tokens, count, share, result);
    product_of<float>(matrix, tokens, count, share, result);
}

// --- Layers ------------------------------------------------------------------------------------------------------

inline float mean(const float *from, int64_t size) {
    Lanes sums = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) sums += load(from + i);
    float total = sum(sums);
    for (; i < size; ++i) total += from[i];
    return total / size;
}

inline void normalise(const float *from, const Norm &norm, int64_t size, float *to) {
    const float centre = norm.bias ? mean(from, size) : 0.0f;
    for (int64_t i = 0; i < size; ++i) to[i] = from[i] - centre;
    float squares[1][1];
    dots<1, 1>(to, to, size, {}, squares);
    const float scale = 1.0f / std::sqrt(squares[0][0] / size + norm.epsilon);
    for (int64_t i = 0; i < size; ++i) to[i] = to[i] * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
}

inline void rotate(float *head, const float *cos, const float *sin, int64_t size) {
    for (int64_t i = 0; i < size / 2; ++i) {
        const float first = head[i], second = head[i + size / 2];
        head[i] = first * cos[i] - second * sin[i];
        head[i + size / 2] = second * cos[i] + first * sin[i];
    }
}

// Sums of C * LANES columns of the slots' values, each with its slot's weight.
template <int C, class Number>
inline void weigh(const float *weights, const Number *values, int64_t slots, int64_t size, float *result) {
    Lanes chains[C] = {};
    for (int64_t slot = 0; slot < slots; ++slot) {
        const Lanes weight = Lanes{} + weights[slot];
#pragma GCC unroll 8
        for (int i = 0; i < C; ++i) chains[i] = multiply_add(weight, load(values + slot * size + i * LANES), chains[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) store(result + i * LANES, chains[i]);
}

// Scaled dot products of a query with the first `seen` keys, less the largest, as powers of e; returns 1 / their sum.
// Scores have room for whole registers: what stands behind the last key becomes e^-87, which weighs nothing in fp32.
template <class Number>
inline float score(const float *query, const Number *keys, int64_t seen, int64_t size, float *scores) {
    const int64_t padded = (seen + LANES - 1) / LANES * LANES;
    const float scale = 1.0f / std::sqrt(float(size));
    float largest = -INFINITY, products[4][1];
    for (int64_t slot = 0; slot < seen; slot += 4) {
        const int several = std::min<int64_t>(4, seen - slot);
        if (several == 4) dots<4, 1>(keys + slot * size, query, size, {}, products);
        else for (int i = 0; i < several; ++i) dots<1, 1>(keys + (slot + i) * size, query, size, {}, products + i);
        for (int i = 0; i < several; ++i) {
            scores[slot + i] = products[i][0] * scale;
            largest = std::max(largest, scores[slot + i]);
        }
    }
    for (int64_t slot = seen; slot < padded; ++slot) scores[slot] = -INFINITY;
    Lanes sums = {};
    for (int64_t slot = 0; slot < padded; slot += LANES) {
        const Lanes powers = exponential(load(scores + slot) - largest);
        store(scores + slot, powers);
        sums += powers;
    }
    return 1.0f / sum(sums);
}

// The sum of the first `seen` values, each times its weight, and all of it times `share`.
template <class Number>
inline void weigh_all(const float *weights, float share, const Number *values, int64_t seen, int64_t size,
                      float *result) {
    int64_t column = 0;
    for (; column + WEIGHED * LANES <= size; column += WEIGHED * LANES)
        weigh<WEIGHED>(weights, values + column, seen, size, result + column);
    for (; column + LANES <= size; column += LANES) weigh<1>(weights, values + column, seen, size, result + column);
    for (; column < size; ++column) {
        result[column] = 0;
        for (int64_t slot = 0; slot < seen; ++slot)
            result[column] += weights[slot] * number(values[slot * size + column]);
    }
    for (int64_t i = 0; i < size; ++i) result[i] *= share;
}

// One key-value head of one sequence, for all of its new tokens and all query heads that share it. Keys and values of
// the new tokens join the cache, unless there are none: in cross-attention.
template <class Number>
void attend(const Model &model, const Attention &attention, const Stored &stored, const Tokens &tokens,
            int64_t sequence, int64_t kv_head, float *query, float *key, const float *value, float *result,
            float *scores) {
    const int64_t size = model.head_size, group = model.heads / model.kv_heads;
    const int64_t first = (sequence * model.kv_heads + kv_head) * (key ? tokens.slots : tokens.memory_slots) * size;
    Number *keys = static_cast<Number *>(stored.keys) + first;
    Number *values = static_cast<Number *>(stored.values) + first;
    for (int64_t t = 0; t < tokens.count; ++t) {
        const int64_t token = sequence * tokens.count + t, position = tokens.lengths[sequence] + t;
        const float *cos = model.cos + position * size, *sin = model.sin + position * size;
        const auto prepare = [&](float *head, const Norm &norm) {
            if (norm.weight) normalise(head, norm, size, head);
            if (model.cos && (key || tokens.cross_rotary)) rotate(head, cos, sin, size);
        };
        if (key) {
            const int64_t own = (token * model.kv_heads + kv_head) * size;
            prepare(key + own, attention.key_norm);
            for (int64_t i = 0; i < size; ++i) {
                store(keys + position * size + i, key[own + i]);
                store(values + position * size + i, value[own + i]);
            }
        }
        const int64_t seen = key ? position + 1 : tokens.memory_lengths[sequence];
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const int64_t start = (token * model.heads + head) * size;
            prepare(query + start, attention.query_norm);
            const float share = score(query + start, keys, seen, size, scores);
            weigh_all(scores, share, values, seen, size, result + start);
        }
    }
}

inline Lanes times_sigmoid(const Lanes &value, const Lanes &x) {
    return value / (1.0f + exponential(x > -80.0f ? -x : Lanes{} + 80.0f));
}

inline Lanes activated(Activation activation, Lanes up, const Lanes &gate) {
    if (activation == SWIGLU) return times_sigmoid(gate, gate) * up;
    // x (1 + tanh(u)) / 2 is x times the sigmoid of 2 u; here is 2 sqrt(2 / pi).
    if (activation == GELU_TANH) return times_sigmoid(up, 1.59576912f * (up + 0.044715f * up * up * up));
    for (int lane = 0; lane < LANES; ++lane) up[lane] *= 0.5f * (1.0f + std::erf(0.707106781f * up[lane]));
    return up;
}

inline void activate(Activation activation, float *up, const float *gate, int64_t begin, int64_t end) {
    for (; begin + LANES <= end; begin += LANES)
        store(up + begin, activated(activation, load(up + begin), load(gate + begin)));
    Lanes ups = {}, gates = {};
    for (int64_t i = begin; i < end; ++i) ups[i - begin] = up[i], gates[i - begin] = gate[i];
    ups = activated(activation, ups, gates);
    for (int64_t i = begin; i < end; ++i) up[i] = ups[i - begin];
}

inline float weight_at(const Matrix &matrix, int64_t index) {
    if (matrix.kind == BF16) return number(static_cast<const BFloat16 *>(matrix.weights)[index]);
    return static_cast<const float *>(matrix.weights)[index];
}

// What the layers of a call hand on: rows of tokens.
struct Activations {
    std::vector<float> memory;
    float *x, *normed, *query, *attended, *key, *value, *gate, *up;

    Activations(const Model &model, int64_t count) {
        const int64_t query_width = model.heads * model.head_size, key_width = model.kv_heads * model.head_size;
        memory.resize(LANES + count * (2 * model.width + 2 * query_width + 2 * key_width + 2 * model.hidden));
        const uintptr_t line = 4 * LANES;  // loads that lie in two cache lines take twice as long
        x = reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(memory.data()) + line - 1) / line * line);
        normed = x + count * model.width;
        query = normed + count * model.width;
        attended = query + count * query_width;
        key = attended + count * query_width;
        value = key + count * key_width;
        gate = value + count * key_width;
        up = gate + count * model.hidden;
    }
};

// One thread's part of a call. Where it needs what others compute, it waits for them.
struct Worker {
    const Model &model;
    const Tokens &tokens;
    const Activations &at;
    const Share share;
    const int64_t count;  // N
    std::vector<float> scores;

    static auto into(float *to, int64_t stride) {
        return [=](int64_t token, int64_t row, float result) { to[token * stride + row] = result; };
    }

    auto add() const {
        return [to = at.x, stride = model.width](int64_t token, int64_t row, float result) {
            to[token * stride + row] += result;
        };
    }

    void embed() const {
        int64_t token, end;
        const int64_t width = model.width;
        share.of(count, 1, token, end);
        for (; token < end; ++token) {
            const int64_t position = tokens.lengths[token / tokens.count] + token % tokens.count;
            float *x = at.x + token * width;
            for (int64_t i = 0; i < width; ++i) {
                x[i] = weight_at(model.embedding, tokens.ids[token] * width + i) * model.embedding_scale;
                if (model.positions) x[i] += model.positions[position * width + i];
            }
        }
    }

    void normalise_all(const Norm &norm) const {
        int64_t token, end;
        share.of(count, 1, token, end);
        for (; token < end; ++token) {
            const int64_t start = token * model.width;
            normalise(at.x + start, norm, model.width, at.normed + start);
        }
#pragma omp barrier
    }

    void add_attention(const Attention &attention, const Stored &stored, float *key) {
        const int64_t query_width = model.heads * model.head_size, key_width = model.kv_heads * model.head_size;
        normalise_all(attention.norm);
        product(attention.query, at.normed, count, share, into(at.query, query_width));
        if (key) {
            product(attention.key, at.normed, count, share, into(key, key_width));
            product(attention.value, at.normed, count, share, into(at.value, key_width));
        }
#pragma omp barrier
        int64_t head, end;
        share.of(tokens.batch * model.kv_heads, 1, head, end);
        const auto attend_in = tokens.cache_kind == BF16 ? attend<BFloat16> : attend<float>;
        for (; head < end; ++head)
            attend_in(model, attention, stored, tokens, head / model.kv_heads, head % model.kv_heads, at.query, key,
                      at.value, at.attended, scores.data());
#pragma omp barrier
        product(attention.out, at.attended, count, share, add());
#pragma omp barrier
    }

    void add_feed_forward(const Block &block) const {
        const int64_t hidden = block.up.rows;
        normalise_all(block.feed_forward_norm);
        if (block.activation == SWIGLU) product(block.gate, at.normed, count, share, into(at.gate, hidden));
        product(block.up, at.normed, count, share, into(at.up, hidden));
        int64_t begin, end;
        share.of(hidden, ROWS, begin, end);  // the rows that this thread has just computed
        for (int64_t token = 0; token < count; ++token)
            activate(block.activation, at.up + token * hidden, at.gate + token * hidden, begin, end);
#pragma omp barrier
        product(block.down, at.up, count, share, add());
#pragma omp barrier
    }

    void work() {
        embed();
        for (int64_t layer = 0; layer < model.layers; ++layer) {
            const Block &block = model.blocks[layer];
            add_attention(block.own, tokens.own[layer], at.key);
            if (block.cross.norm.weight) add_attention(block.cross, tokens.cross[layer], nullptr);
            add_feed_forward(block);
        }
        normalise_all(model.norm);
        product(model.head, at.normed, count, share, into(tokens.logits, model.head.rows));
    }
};

}  // namespace

// False if a token is not of the vocabulary; nothing is read then.
extern "C" bool read_tokens(const Model *model, const Tokens *tokens) {
    const int64_t count = tokens->batch * tokens->count;
    for (int64_t i = 0; i < count; ++i)
        if (tokens->ids[i] < 0 || tokens->ids[i] >= model->embedding.rows) return false;
    const Activations activations(*model, count);
#pragma omp parallel num_threads(tokens->threads)
    {
        const Share share{omp_get_thread_num(), omp_get_num_threads()};
        const size_t slots = std::max(tokens->slots, tokens->memory_slots) + LANES;
        Worker{*model, *tokens, activations, share, count, std::vector<float>(slots)}.work();
    }
    return true;
}
