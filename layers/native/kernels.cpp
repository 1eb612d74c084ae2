// What stands between the matrix products of a training step, forward and backward: norms, rotary queries and keys,
// SwiGLU, dropout and the softmax of attention. torch takes a pass over memory for each operation of these; here each is
// one pass, and the loops are left to the compiler, which makes vector instructions of them.
//
// Numbers are fp32 or bf16, sums are fp32. Rows are tokens. kernels.py says what each function computes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

constexpr int MAX_HEAD = 256;  // the widest head, kernels.py asks first

struct BFloat16 {
    uint16_t bits;
};

inline float number(float value) { return value; }
inline float number(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline void put(float &to, float value) { to = value; }
inline void put(BFloat16 &to, float value) {  // to the nearest, to even where two are as near
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = value != value ? 0x7fc0 : uint16_t(bits);
}

// e^x for x <= 88, with a relative error of some 1e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Adding and
// taking away 1.5 * 2^23 rounds to a whole number.
inline float exponential(float from) {
    const float x = from < -87.0f ? -87.0f : from;  // NaN stays
    const float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float series = 1.0f / 5040;
    series = series * rest + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    const int32_t power = (int32_t(whole) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return from < -87.0f ? 0.0f : scale * series;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(x < -80.0f ? 80.0f : -x)); }

// --- Root mean square norm ----------------------------------------------------------------------------------------

template <class X>
float inverse_root(const X *x, int64_t size, float epsilon) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; ++i) squares += number(x[i]) * number(x[i]);
    return 1.0f / std::sqrt(squares / size + epsilon);
}

template <class X, class Y>
void norm_forward(const X *x, const float *weight, Y *y, int64_t rows, int64_t size, float epsilon, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        const X *from = x + row * size;
        Y *to = y + row * size;
        const float inverse = inverse_root(from, size, epsilon);
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) put(to[i], number(from[i]) * inverse * weight[i]);
    }
}

// With n = x * inverse and g = dy * weight: dx = inverse * (g - n * mean(g n)), dweight = sum of dy n over rows.
template <class X, class Y>
void norm_backward(const Y *dy, const X *x, const float *weight, X *dx, float *dweights, int64_t rows, int64_t size,
                   float epsilon, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        float *dweight = dweights + omp_get_thread_num() * size;
#pragma omp for
        for (int64_t row = 0; row < rows; ++row) {
            const X *from = x + row * size;
            const Y *change = dy + row * size;
            X *to = dx + row * size;
            const float inverse = inverse_root(from, size, epsilon);
            float product = 0.0f;
#pragma omp simd reduction(+ : product)
            for (int64_t i = 0; i < size; ++i) {
                const float both = number(change[i]) * number(from[i]) * inverse;
                dweight[i] += both;
                product += both * weight[i];
            }
            const float mean = product / size * inverse;
#pragma omp simd
            for (int64_t i = 0; i < size; ++i)
                put(to[i], inverse * (number(change[i]) * weight[i] - number(from[i]) * mean));
        }
    }
}

// --- Heads: (B, T, H, D) to (B, H, T, D), normed and rotated on the way ---------------------------------------------

struct Heads {
    int64_t batch, tokens, heads, size, row_stride;  // row_stride: from token to token where all heads lie side by side
    const float *weight, *cos, *sin;                 // weight: of the norm, or null; angles: or null
    int64_t angle_batch, angle_head;                 // strides of the angles; from token to token it is `size`
    float epsilon;
};

template <class T>
void heads_forward(const T *x, T *y, const Heads &h, int64_t threads) {
    const int64_t size = h.size, half = size / 2;  // Copies: the compiler must know that no store changes them.
    const float *weight = h.weight;
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t batch = 0; batch < h.batch; ++batch)
        for (int64_t token = 0; token < h.tokens; ++token)
            for (int64_t head = 0; head < h.heads; ++head) {
                const T *from = x + (batch * h.tokens + token) * h.row_stride + head * size;
                T *to = y + ((batch * h.heads + head) * h.tokens + token) * size;
                float n[MAX_HEAD];
                const float inverse = weight ? inverse_root(from, size, h.epsilon) : 1.0f;
                if (weight)
#pragma omp simd
                    for (int64_t i = 0; i < size; ++i) n[i] = number(from[i]) * inverse * weight[i];
                else
#pragma omp simd
                    for (int64_t i = 0; i < size; ++i) n[i] = number(from[i]);
                if (h.cos) {
                    const int64_t offset = batch * h.angle_batch + head * h.angle_head + token * size;
                    const float *cos = h.cos + offset, *sin = h.sin + offset;
#pragma omp simd
                    for (int64_t i = 0; i < half; ++i) {
                        put(to[i], n[i] * cos[i] - n[i + half] * sin[i]);
                        put(to[i + half], n[i + half] * cos[i + half] + n[i] * sin[i + half]);
                    }
                } else
#pragma omp simd
                    for (int64_t i = 0; i < size; ++i) put(to[i], n[i]);
            }
}

template <class T>
void heads_backward(const T *dy, const T *x, T *dx, float *dweights, const Heads &h, int64_t threads) {
    const int64_t size = h.size, half = size / 2;  // Copies: the compiler must know that no store changes them.
    const float *weight = h.weight;
#pragma omp parallel num_threads(threads)
    {
        float *dweight = dweights + omp_get_thread_num() * size;
#pragma omp for collapse(2)
        for (int64_t batch = 0; batch < h.batch; ++batch)
            for (int64_t token = 0; token < h.tokens; ++token)
                for (int64_t head = 0; head < h.heads; ++head) {
                    const int64_t offset = (batch * h.tokens + token) * h.row_stride + head * size;
                    const T *from = x + offset, *change = dy + ((batch * h.heads + head) * h.tokens + token) * size;
                    T *to = dx + offset;
                    float g[MAX_HEAD];
                    if (h.cos) {
                        const int64_t angle = batch * h.angle_batch + head * h.angle_head + token * size;
                        const float *cos = h.cos + angle, *sin = h.sin + angle;
#pragma omp simd
                        for (int64_t i = 0; i < half; ++i) {
                            const float first = number(change[i]), second = number(change[i + half]);
                            g[i] = first * cos[i] + second * sin[i + half];
                            g[i + half] = second * cos[i + half] - first * sin[i];
                        }
                    } else
#pragma omp simd
                        for (int64_t i = 0; i < size; ++i) g[i] = number(change[i]);
                    if (!weight) {
#pragma omp simd
                        for (int64_t i = 0; i < size; ++i) put(to[i], g[i]);
                        continue;
                    }
                    const float inverse = inverse_root(from, size, h.epsilon);
                    float product = 0.0f;
#pragma omp simd reduction(+ : product)
                    for (int64_t i = 0; i < size; ++i) {
                        const float both = g[i] * number(from[i]) * inverse;
                        dweight[i] += both;
                        product += both * weight[i];
                    }
                    const float mean = product / size * inverse;
#pragma omp simd
                    for (int64_t i = 0; i < size; ++i)
                        put(to[i], inverse * (g[i] * weight[i] - number(from[i]) * mean));
                }
    }
}

// --- SwiGLU: of gate and up, side by side in each row ---------------------------------------------------------------

template <class T>
void swiglu_forward(const T *x, T *y, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        const T *gate = x + row * 2 * size, *up = gate + size;
        T *to = y + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i)
            put(to[i], number(gate[i]) * sigmoid(number(gate[i])) * number(up[i]));
    }
}

template <class T>
void swiglu_backward(const T *dy, const T *x, T *dx, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        const T *gate = x + row * 2 * size, *up = gate + size, *change = dy + row * size;
        T *dgate = dx + row * 2 * size, *dup = dgate + size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            const float g = number(gate[i]), share = sigmoid(g), d = number(change[i]);
            put(dup[i], d * g * share);
            put(dgate[i], d * number(up[i]) * share * (1.0f + g * (1.0f - share)));
        }
    }
}

// --- Dropout ------------------------------------------------------------------------------------------------------

struct Dropout {
    const int64_t *keys;  // of each sample
    int32_t site, threshold;
    float scale;
};

struct Key {
    uint32_t first, second;
    Key(int64_t key, int32_t site) : first(uint32_t(key)), second(uint32_t(uint64_t(key) >> 32) + uint32_t(site)) {}
};

// layers/dropout.py has the same in torch's operations.
inline bool keeps(const Key &key, uint32_t index, int32_t threshold) {
    uint32_t x = index ^ key.first;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) + key.second;
    x = x * 0x846ca68bu;
    x = (x ^ (x >> 16)) * 0x2c1b3c6du;
    return int32_t(x ^ (x >> 15)) >= threshold;
}

template <class T>
void drop(const T *x, T *y, int64_t samples, int64_t size, const Dropout &dropout, int64_t threads) {
    constexpr int64_t PART = 4096;
    const int64_t parts = (size + PART - 1) / PART;
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t sample = 0; sample < samples; ++sample)
        for (int64_t part = 0; part < parts; ++part) {
            const Key key(dropout.keys[sample], dropout.site);
            const int64_t begin = part * PART;
            const int32_t count = std::min(size - begin, PART), threshold = dropout.threshold;
            const float scale = dropout.scale;
            const T *from = x + sample * size + begin;
            T *to = y + sample * size + begin;
#pragma omp simd
            for (int32_t i = 0; i < count; ++i) {
                const float value = number(from[i]) * scale;
                put(to[i], keeps(key, uint32_t(begin) + i, threshold) ? value : 0.0f);
            }
        }
}

// --- Softmax of attention, with dropout -----------------------------------------------------------------------------

struct Scores {
    int64_t batch, heads, queries, keys;
    float scale;
    bool causal;
    const bool *mask;  // (B, 1, S) or (B, T, S), true where a query sees a key; or null
    int64_t mask_batch, mask_query;
};

// Scores become weights; those that are dropped are negative there, and zero in `dropped`, where others are scaled.
template <class T>
void softmax_forward(T *scores, T *dropped, const Scores &s, const Dropout &dropout, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> powers(s.keys);
#pragma omp for collapse(2)
        for (int64_t row = 0; row < s.batch * s.heads; ++row)
            for (int64_t query = 0; query < s.queries; ++query) {
                const int64_t batch = row / s.heads, seen = s.causal ? query + 1 + s.keys - s.queries : s.keys;
                const bool *mask = s.mask ? s.mask + batch * s.mask_batch + query * s.mask_query : nullptr;
                T *weights = scores + (row * s.queries + query) * s.keys;
                T *kept = dropped + (row * s.queries + query) * s.keys;
                if (mask)
                    for (int64_t i = 0; i < seen; ++i)
                        if (!mask[i]) put(weights[i], -INFINITY);
                float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
                for (int64_t i = 0; i < seen; ++i) largest = std::max(largest, number(weights[i]));
                const float scale = s.scale;
                float *power = powers.data();
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < seen; ++i) {
                    power[i] = exponential((number(weights[i]) - largest) * scale);
                    sum += power[i];
                }
                const Key key(dropout.keys[batch], dropout.site);
                const uint32_t first = uint32_t(((row % s.heads) * s.queries + query) * s.keys);
                const float inverse = 1.0f / sum, kept_scale = inverse * dropout.scale;
                const int32_t count = seen, threshold = dropout.threshold;
#pragma omp simd
                for (int32_t i = 0; i < count; ++i) {
                    const bool keep = keeps(key, first + i, threshold);
                    put(weights[i], power[i] * (keep ? inverse : -inverse));
                    put(kept[i], power[i] * (keep ? kept_scale : 0.0f));
                }
                for (int64_t i = seen; i < s.keys; ++i) put(weights[i], 0.0f), put(kept[i], 0.0f);
            }
    }
}

// The gradient of the scores, in place of that of `dropped`: w * (d - sum(d w)), where d is 0 for what was dropped.
template <class T>
void softmax_backward(T *changes, const T *scores, const Scores &s, const Dropout &dropout, int64_t threads) {
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t row = 0; row < s.batch * s.heads; ++row)
        for (int64_t query = 0; query < s.queries; ++query) {
            const int64_t seen = s.causal ? query + 1 + s.keys - s.queries : s.keys;
            const T *weights = scores + (row * s.queries + query) * s.keys;
            T *change = changes + (row * s.queries + query) * s.keys;
            float sum = 0.0f;
            const float kept = dropout.scale, scale = s.scale;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < seen; ++i) sum += number(change[i]) * kept * std::max(number(weights[i]), 0.0f);
#pragma omp simd
            for (int64_t i = 0; i < seen; ++i) {
                const float weight = number(weights[i]);
                put(change[i], std::fabs(weight) * ((weight > 0.0f ? number(change[i]) * kept : 0.0f) - sum) * scale);
            }
            for (int64_t i = seen; i < s.keys; ++i) put(change[i], 0.0f);
        }
}

}  // namespace

// --- What kernels.py calls: `bf16` says of which dtype the tensors are ------------------------------------------------

#define OF(type, name) reinterpret_cast<type *>(name)
#define OF_CONST(type, name) reinterpret_cast<const type *>(name)

extern "C" {

void rms_norm_forward(const void *x, const float *weight, void *y, int64_t rows, int64_t size, float epsilon,
                      int64_t x_bf16, int64_t y_bf16, int64_t threads) {
    if (x_bf16) norm_forward(OF_CONST(BFloat16, x), weight, OF(BFloat16, y), rows, size, epsilon, threads);
    else if (y_bf16) norm_forward(OF_CONST(float, x), weight, OF(BFloat16, y), rows, size, epsilon, threads);
    else norm_forward(OF_CONST(float, x), weight, OF(float, y), rows, size, epsilon, threads);
}

void rms_norm_backward(const void *dy, const void *x, const float *weight, void *dx, float *dweights, int64_t rows,
                       int64_t size, float epsilon, int64_t x_bf16, int64_t y_bf16, int64_t threads) {
    if (x_bf16)
        norm_backward(OF_CONST(BFloat16, dy), OF_CONST(BFloat16, x), weight, OF(BFloat16, dx), dweights, rows, size,
                      epsilon, threads);
    else if (y_bf16)
        norm_backward(OF_CONST(BFloat16, dy), OF_CONST(float, x), weight, OF(float, dx), dweights, rows, size, epsilon,
                      threads);
    else
        norm_backward(OF_CONST(float, dy), OF_CONST(float, x), weight, OF(float, dx), dweights, rows, size, epsilon,
                      threads);
}

void split_heads_forward(const void *x, void *y, const Heads *heads, int64_t bf16, int64_t threads) {
    if (bf16) heads_forward(OF_CONST(BFloat16, x), OF(BFloat16, y), *heads, threads);
    else heads_forward(OF_CONST(float, x), OF(float, y), *heads, threads);
}

void split_heads_backward(const void *dy, const void *x, void *dx, float *dweights, const Heads *heads, int64_t bf16,
                          int64_t threads) {
    if (bf16)
        heads_backward(OF_CONST(BFloat16, dy), OF_CONST(BFloat16, x), OF(BFloat16, dx), dweights, *heads, threads);
    else
        heads_backward(OF_CONST(float, dy), OF_CONST(float, x), OF(float, dx), dweights, *heads, threads);
}

void glu_forward(const void *x, void *y, int64_t rows, int64_t size, int64_t bf16, int64_t threads) {
    if (bf16) swiglu_forward(OF_CONST(BFloat16, x), OF(BFloat16, y), rows, size, threads);
    else swiglu_forward(OF_CONST(float, x), OF(float, y), rows, size, threads);
}

void glu_backward(const void *dy, const void *x, void *dx, int64_t rows, int64_t size, int64_t bf16, int64_t threads) {
    if (bf16) swiglu_backward(OF_CONST(BFloat16, dy), OF_CONST(BFloat16, x), OF(BFloat16, dx), rows, size, threads);
    else swiglu_backward(OF_CONST(float, dy), OF_CONST(float, x), OF(float, dx), rows, size, threads);
}

void dropped(const void *x, void *y, int64_t samples, int64_t size, const Dropout *dropout, int64_t bf16, int64_t threads) {
    if (bf16) drop(OF_CONST(BFloat16, x), OF(BFloat16, y), samples, size, *dropout, threads);
    else drop(OF_CONST(float, x), OF(float, y), samples, size, *dropout, threads);
}

void dropped_softmax_forward(void *scores, void *kept, const Scores *s, const Dropout *dropout, int64_t bf16,
                             int64_t threads) {
    if (bf16) softmax_forward(OF(BFloat16, scores), OF(BFloat16, kept), *s, *dropout, threads);
    else softmax_forward(OF(float, scores), OF(float, kept), *s, *dropout, threads);
}

void dropped_softmax_backward(void *changes, const void *scores, const Scores *s, const Dropout *dropout, int64_t bf16,
                              int64_t threads) {
    if (bf16) softmax_backward(OF(BFloat16, changes), OF_CONST(BFloat16, scores), *s, *dropout, threads);
    else softmax_backward(OF(float, changes), OF_CONST(float, scores), *s, *dropout, threads);
}
}
