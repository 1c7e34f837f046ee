/* One token through the network: what `dgsgpt/model/gpt.py` computes with torch's operators, for one row of one text.

   All numbers are float32. Weights and caches are read where torch has them; the structs are mirrored, field by field,
   in `native.py`. Legend: C width, H heads, G kv_heads, D head_dim, F hidden, V vocab. A row times a matrix is as fast
   as memory gives the matrix, which is fastest in one stream: each loop reads its matrix once, row by row. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { GELU, RELU, RELU2, SWIGLU };

typedef struct {
    const float *weight, *bias; /* a matrix [out, in] or gains; null is none */
} Affine;

typedef struct {
    Affine norm1, q, k, v, q_norm, k_norm, out, norm2, gate, up, down; /* no `down`: the feed-forward is the caller's */
    const float *stream_mix, *value_mix;                               /* two shares each, or null */
    float *keys[2], *values[2]; /* for each window [G / windows, room, D]; position p lies in slot p mod room */
    int64_t room[2], windows;
} Block;

typedef struct {
    const Block *blocks;
    Affine norm, head;
    const float *cos, *sin; /* [D] of this token's position, or null */
    int64_t width, heads, kv_heads, head_dim, hidden, vocab, layernorm, activation;
    float eps;
    /* Room to work in: [C], [C] and [G D] of the first block, [H D] twice, [G D] twice, [F] twice, [largest room]. */
    float *normed, *first, *first_values, *q, *attended, *k, *v, *gate, *up, *scores;
} Model;

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += a[j] * b[j];
    return sum;
}

static void multiply(Affine matrix, const float *x, float *y, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) {
        const float sum = dot(matrix.weight + i * columns, x, columns);
        y[i] = matrix.bias ? sum + matrix.bias[i] : sum;
    }
}

static void add(float *x, const float *y, int64_t n) {
    #pragma omp simd
    for (int64_t j = 0; j < n; j++) x[j] += y[j];
}

/* `own` and `first` mixed in learned shares. */
static void mix(const float *share, float *own, const float *first, int64_t n) {
    #pragma omp simd
    for (int64_t j = 0; j < n; j++) own[j] = share[0] * own[j] + share[1] * first[j];
}

/* e^x to float32's precision, without a branch or a call, so that loops of it are vectorized. The power of two nearest
   to it comes from rounding by a large addend, the rest from a polynomial (Cephes). NaN stays NaN. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    union { float f; int32_t i; } shifted = {x * 1.44269504f + 12582912.0f}, power;
    const float n = shifted.f - 12582912.0f, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    power.i = (int32_t)(((uint32_t)shifted.i - 0x4B400000u + 127u) << 23);
    return (p * r * r + r + 1.0f) * power.f;
}

static void rms_norm(const float *gain, const float *x, float *y, int64_t n, float eps) {
    const float scale = 1 / sqrtf(dot(x, x, n) / n + eps);
    #pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = x[j] * scale * gain[j];
}

static void layer_norm(Affine norm, const float *x, float *y, int64_t n, float eps) {
    float mean = 0;
    #pragma omp simd reduction(+ : mean)
    for (int64_t j = 0; j < n; j++) mean += x[j];
    mean /= n;
    #pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = x[j] - mean;
    rms_norm(norm.weight, y, y, n, eps);
    if (norm.bias) add(y, norm.bias, n);
}

static void normalize(const Model *m, Affine norm, const float *x, float *y) {
    if (m->layernorm)
        layer_norm(norm, x, y, m->width, m->eps);
    else
        rms_norm(norm.weight, x, y, m->width, m->eps);
}

/* Heads of queries or keys, normalised where the model does so, then turned by the angles of the position. */
static void place(const Model *m, Affine norm, float *x, int64_t heads) {
    const int64_t half = m->head_dim / 2;
    for (int64_t h = 0; h < heads; h++, x += m->head_dim) {
        if (norm.weight) rms_norm(norm.weight, x, x, m->head_dim, m->eps);
        if (!m->cos) continue;
        #pragma omp simd
        for (int64_t j = 0; j < half; j++) {
            const float left = x[j], right = x[j + half];
            x[j] = left * m->cos[j] + right * m->sin[j]; /* the first half of the sines has the sign turned */
            x[j + half] = right * m->cos[j + half] + left * m->sin[j + half];
        }
    }
}

/* One query [D] to `seen` keys and values [seen, D] -> y [D]; the softmax is taken relative to the largest score. */
static void attend(const Model *m, const float *q, const float *keys, const float *values, int64_t seen, float *y) {
    const int64_t n = m->head_dim;
    const float scale = 1 / sqrtf((float)n);
    float *scores = m->scores, most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < seen; i++) {
        scores[i] = dot(q, keys + i * n, n) * scale;
        if (scores[i] > most) most = scores[i];
    }
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < seen; i++) sum += scores[i] = exponential(scores[i] - most);
    memset(y, 0, n * sizeof *y);
    for (int64_t i = 0; i < seen; i++) {
        const float weight = scores[i] / sum, *value = values + i * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) y[j] += weight * value[j];
    }
}

/* Heads of each window append their keys and values to their own buffer and attend to what it holds. */
static void attend_windows(const Model *m, const Block *b, int64_t position) {
    const int64_t n = m->head_dim, heads = m->heads / b->windows;
    const int64_t groups = m->kv_heads > 1 ? m->kv_heads / b->windows : 1; /* a single one serves all windows */
    for (int64_t w = 0; w < b->windows; w++) {
        const int64_t room = b->room[w], seen = position < room ? position + 1 : room;
        const int64_t offset = m->kv_heads > 1 ? w * groups * n : 0;
        for (int64_t g = 0; g < groups; g++) {
            float *keys = b->keys[w] + g * room * n, *values = b->values[w] + g * room * n;
            memcpy(keys + position % room * n, m->k + offset + g * n, n * sizeof *keys);
            memcpy(values + position % room * n, m->v + offset + g * n, n * sizeof *values);
            for (int64_t h = g * (heads / groups); h < (g + 1) * (heads / groups); h++) {
                const int64_t at = (w * heads + h) * n;
                attend(m, m->q + at, keys, values, seen, m->attended + at);
            }
        }
    }
}

/* `x` [C] plus its attention to itself and to what the cache holds. */
static void attention(const Model *m, const Block *b, int64_t position, float *x) {
    const int64_t wide = m->heads * m->head_dim, narrow = m->kv_heads * m->head_dim;
    normalize(m, b->norm1, x, m->normed);
    multiply(b->q, m->normed, m->q, wide, m->width);
    multiply(b->k, m->normed, m->k, narrow, m->width);
    multiply(b->v, m->normed, m->v, narrow, m->width);
    place(m, b->q_norm, m->q, m->heads);
    place(m, b->k_norm, m->k, m->kv_heads);
    if (b == m->blocks) memcpy(m->first_values, m->v, narrow * sizeof *x);
    if (b->value_mix) mix(b->value_mix, m->v, m->first_values, narrow);
    attend_windows(m, b, position);
    multiply(b->out, m->attended, m->normed, m->width, wide);
    add(x, m->normed, m->width);
}

static void activate(int64_t kind, float *x, int64_t n) {
    if (kind == SWIGLU) {
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) x[j] /= 1 + exponential(-x[j]);
    } else if (kind == GELU) { /* (1 + tanh u) / 2 = 1 / (1 + e^-2u) */
        #pragma omp simd
        for (int64_t j = 0; j < n; j++)
            x[j] /= 1 + exponential(-1.5957691216f * (x[j] + 0.044715f * x[j] * x[j] * x[j]));
    } else {
        for (int64_t j = 0; j < n; j++) {
            const float kept = x[j] < 0 ? 0 : x[j]; /* so NaN stays */
            x[j] = kind == RELU2 ? kept * kept : kept;
        }
    }
}

/* `x` [C] plus its dense network, gated or plain. */
static void feed_forward(const Model *m, const Block *b, float *x) {
    normalize(m, b->norm2, x, m->normed);
    multiply(b->up, m->normed, m->up, m->hidden, m->width);
    if (b->gate.weight) {
        multiply(b->gate, m->normed, m->gate, m->hidden, m->width);
        activate(m->activation, m->gate, m->hidden);
        for (int64_t j = 0; j < m->hidden; j++) m->up[j] *= m->gate[j];
    } else {
        activate(m->activation, m->up, m->hidden);
    }
    multiply(b->down, m->up, m->normed, m->width, m->hidden);
    add(x, m->normed, m->width);
}

/* Blocks `begin` to `end - 1` for the token at `position`: `x` [C] is replaced by what leaves them. */
void run_blocks(const Model *m, int64_t begin, int64_t end, int64_t position, float *x) {
    if (begin == 0) memcpy(m->first, x, m->width * sizeof *x);
    for (const Block *b = m->blocks + begin; b < m->blocks + end; b++) {
        if (b->stream_mix) mix(b->stream_mix, x, m->first, m->width);
        attention(m, b, position, x);
        if (b->down.weight) feed_forward(m, b, x);
    }
}

/* Logits [V] of what left the last block. */
void judge(const Model *m, const float *x, float *logits) {
    normalize(m, m->norm, x, m->normed);
    multiply(m->head, m->normed, logits, m->vocab, m->width);
}
