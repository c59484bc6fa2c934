/* The CPU's operators in fp32 and bf16 that PyTorch's operations cannot compute in one pass through memory:
   normalisation, alone and fused with bias, ReLU and max pooling, and the tile transforms of Winograd convolution.

   kernels/native/build.py compiles this file with the machine's C compiler, and kernels/native/c_functions.py calls it.
   kernels/native/{normalisation,pooling,winograd_tiles}.py hold the same computations in PyTorch, for other dtypes and
   for machines without a compiler. Each function reads and writes memory once and works in a thread's cache in between.
   Inner loops run over adjacent channels or pixels, so that compilers vectorise them. No result depends on the number
   of threads. Functions return 1, or 0 if they cannot allocate memory.

   Arrays of type `void` hold fp32, or bf16 where `bf16` is not 0. All arithmetic is in fp32. */

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    SPAN = 32,       /* pixels normalised together in NCHW: two cache lines of each channel */
    BAND = 8,        /* rows of a map that a thread computes at a time */
    TOGETHER = 1024, /* values of pixels normalised together in channels_last */
    NO_ARGMAX = 255, /* marks a pooled element that the ReLU set to 0 */
    BUFFERS = 7,
};

/* The address of element `at`. */
INLINE const void *element(const void *array, long at, int bf16)
{
    return (const char *)array + at * (bf16 ? (long)sizeof(uint16_t) : (long)sizeof(float));
}

INLINE void *writable_element(void *array, long at, int bf16) { return (void *)element(array, at, bf16); }

INLINE float from_bf16(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* The nearest bf16, and the even one of two; a NaN stays a NaN. */
INLINE uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    uint32_t is_nan = -(uint32_t)(value != value);
    return (uint16_t)((rounded & ~is_nan) | (quiet & is_nan));
}

INLINE void load_bf16(const uint16_t *restrict from, float *restrict to, long count)
{
    for (long i = 0; i < count; i++) to[i] = from_bf16(from[i]);
}

INLINE void store_bf16(const float *restrict from, uint16_t *restrict to, long count)
{
    for (long i = 0; i < count; i++) to[i] = to_bf16(from[i]);
}

INLINE void load(const void *from, float *restrict to, long count, int bf16)
{
    if (bf16)
        load_bf16(from, to, count);
    else
        memcpy(to, from, count * sizeof(float));
}

INLINE void store(const float *restrict from, void *to, long count, int bf16)
{
    if (bf16)
        store_bf16(from, to, count);
    else
        memcpy(to, from, count * sizeof(float));
}

/* Some compilers' vectorisers keep to half of the processor's width, so that costly vectors are written out. */
enum { WIDTH = 16 };
typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(WIDTH * sizeof(float))));
typedef int32_t Mask __attribute__((vector_size(WIDTH * sizeof(float))));

/* 1 / sqrt(x) */
INLINE Vector reciprocal_root(Vector x)
{
#ifdef __AVX512F__ /* An estimate to 14 bits, and a step of Newton's method unless it makes 0 or infinity a NaN. */
    Vector estimate = (Vector)_mm512_rsqrt14_ps((__m512)x);
    Vector refined = estimate * (1.5f - 0.5f * x * estimate * estimate);
    Mask keep = refined == refined;
    return (Vector)(((Mask)refined & keep) | ((Mask)estimate & ~keep));
#else
    for (long i = 0; i < WIDTH; i++) x[i] = 1.0f / sqrtf(x[i]);
    return x;
#endif
}

enum { RELU_NONE, RELU_BEFORE, RELU_AFTER };

typedef struct {
    long channels; /* of one group */
    long size;     /* of the window */
    float alpha;   /* divided by the number of elements in the window */
    float beta, k;
} Norm;

/* One thread's buffers for pixels that are normalised together: in NCHW `span` adjacent pixels, with the channels of one
   group. They are flat, so that a window over channels is a sum of values `span` apart. In channels_last, pixels lie one
   after the other with size - 1 zeros between them, as if they were one pixel with more channels. `squares` and `spread` include the margins of the first and last windows, which stay 0. */
typedef struct {
    float *x, *grad, *squares, *spread, *scale, *power, *inverse;
} Buffers;

/* The floats that `buffers_in` needs. */
static long buffers_length(const Norm *norm, long span)
{
    return BUFFERS * (norm->channels + norm->size - 1) * span;
}

static Buffers buffers_in(float *memory, const Norm *norm, long span)
{
    long length = buffers_length(norm, span) / BUFFERS;
    memset(memory, 0, BUFFERS * length * sizeof(float));
    return (Buffers){memory,              memory + length,     memory + 2 * length, memory + 3 * length,
                     memory + 4 * length, memory + 5 * length, memory + 6 * length};
}

/* sums[i] = terms[i] + terms[i + step] + ... + terms[i + (size - 1) * step] */
INLINE void sums_of_size(const float *restrict terms, float *restrict sums, long count, long size, long step)
{
    for (long i = 0; i < count; i++) {
        float sum = terms[i];
        for (long j = 1; j < size; j++) sum += terms[i + j * step];
        sums[i] = sum;
    }
}

static void window_sums(const float *restrict terms, float *restrict sums, long count, long size, long step)
{
    if (size == 5) { /* The size is a compile-time constant, so that the loop over j is unrolled. */
        sums_of_size(terms, sums, count, 5, step);
        return;
    }
    memcpy(sums, terms, count * sizeof(float));
    for (long j = 1; j < size; j++)
        for (long i = 0; i < count; i++) sums[i] += terms[i + j * step];
}

/* scale = k + alpha * scale; power = scale^-0.75 and inverse = 1 / scale, for at most WIDTH elements. */
INLINE void powers_of_width(const Norm *norm, float *restrict scale, float *restrict power, float *restrict inverse,
                            long count)
{
    Vector x = {0};
    memcpy(&x, scale, count * sizeof(float));
    x = norm->k + norm->alpha * x;
    Vector root = reciprocal_root(x), squared = root * root, product = squared * reciprocal_root(root);
    product = (Vector)((Mask)product & (root != 0)); /* of infinity */
    memcpy(scale, &x, count * sizeof(float));
    memcpy(inverse, &squared, count * sizeof(float));
    memcpy(power, &product, count * sizeof(float));
}

/* Overwrites window sums with scale = k + alpha * sums; power = scale^-beta and inverse = 1 / scale. */
static void powers(const Norm *norm, float *restrict scale, float *restrict power, float *restrict inverse, long count)
{
    if (norm->beta == 0.75f) { /* AlexNet's exponent needs no logarithm. */
        long i = 0;
        for (; i + WIDTH <= count; i += WIDTH) powers_of_width(norm, scale + i, power + i, inverse + i, WIDTH);
        if (i < count) powers_of_width(norm, scale + i, power + i, inverse + i, count - i);
    } else {
        for (long i = 0; i < count; i++) {
            scale[i] = norm->k + norm->alpha * scale[i];
            inverse[i] = 1.0f / scale[i];
            power[i] = powf(scale[i], -norm->beta);
        }
    }
}

/* Computes scale, power and inverse from buffers->x. */
static void scales(const Norm *norm, Buffers *buffers, long span)
{
    long count = norm->channels * span;
    const float *restrict x = buffers->x;
    float *restrict inside = buffers->squares + norm->size / 2 * span;
    for (long i = 0; i < count; i++) inside[i] = x[i] * x[i];
    window_sums(buffers->squares, buffers->scale, count, norm->size, span);
    powers(norm, buffers->scale, buffers->power, buffers->inverse, count);
}

/* y = x * scale^-beta, for x = buffers->x */
static void normalise(const Norm *norm, Buffers *buffers, long span, float *restrict y)
{
    long count = norm->channels * span;
    const float *restrict x = buffers->x, *restrict power = buffers->power;
    scales(norm, buffers, span);
    for (long i = 0; i < count; i++) y[i] = x[i] * power[i];
}

/* grad_x = grad * scale^-beta - 2 alpha beta / n * x * (mirrored window sums of grad * x * scale^(-beta - 1)) */
static void normalise_backward(const Norm *norm, Buffers *buffers, long span, float *restrict grad_x)
{
    long count = norm->channels * span;
    float factor = 2 * norm->alpha * norm->beta;
    const float *restrict x = buffers->x, *restrict grad = buffers->grad, *restrict inverse = buffers->inverse;
    float *restrict inside = buffers->spread + (norm->size - 1) / 2 * span;
    float *restrict direct = buffers->power, *restrict sums = buffers->scale;
    scales(norm, buffers, span);
    for (long i = 0; i < count; i++) {
        direct[i] *= grad[i];
        inside[i] = direct[i] * x[i] * inverse[i];
    }
    window_sums(buffers->spread, sums, count, norm->size, span);
    for (long i = 0; i < count; i++) grad_x[i] = direct[i] - factor * x[i] * sums[i];
}

/* The distance of pixels in channels_last in the buffers, and the number of them. */
static long pitch_of(const Norm *norm) { return norm->channels + norm->size - 1; }

static long together_of(const Norm *norm) { return TOGETHER / pitch_of(norm) > 1 ? TOGETHER / pitch_of(norm) : 1; }

/* Normalisation of `pixels` pixels in channels_last as that of one pixel. */
static Norm joined(const Norm *norm, long pixels)
{
    Norm wide = *norm;
    wide.channels = pixels * pitch_of(norm) - (norm->size - 1);
    return wide;
}

/* Normalises `pixels` pixels of one group in channels_last. */
static int norm_over_pixels(const Norm *norm, const void *x, const void *grad, void *result, long pixels, int bf16,
                            int threads)
{
    long channels = norm->channels, pitch = pitch_of(norm), together = together_of(norm);
    Norm whole = joined(norm, together);
    long per_thread = buffers_length(&whole, 1) + whole.channels;
    float *memory = malloc(threads * per_thread * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *own = memory + omp_get_thread_num() * per_thread, *flat = own + buffers_length(&whole, 1);
        Buffers buffers = buffers_in(own, &whole, 1);
#pragma omp for schedule(static)
        for (long first = 0; first < pixels; first += together) {
            long count = pixels - first < together ? pixels - first : together;
            Norm some = joined(norm, count);
            for (long i = 0; i < count; i++) {
                long at = (first + i) * channels;
                load(element(x, at, bf16), buffers.x + i * pitch, channels, bf16);
                if (grad) load(element(grad, at, bf16), buffers.grad + i * pitch, channels, bf16);
            }
            if (grad)
                normalise_backward(&some, &buffers, 1, flat);
            else
                normalise(&some, &buffers, 1, flat);
            for (long i = 0; i < count; i++)
                store(flat + i * pitch, writable_element(result, (first + i) * channels, bf16), channels, bf16);
        }
    }
    free(memory);
    return 1;
}

/* Copies `span` pixels from a tensor whose channels are `inner` elements apart to a flat buffer. */
static void gather(const void *tensor, float *restrict flat, long channels, long inner, long span, int bf16)
{
    for (long c = 0; c < channels; c++) load(element(tensor, c * inner, bf16), flat + c * span, span, bf16);
}

/* Copies `span` pixels back from a flat buffer. */
static void scatter(const float *restrict flat, void *tensor, long channels, long inner, long span, int bf16)
{
    for (long c = 0; c < channels; c++) store(flat + c * span, writable_element(tensor, c * inner, bf16), span, bf16);
}

/* Local response normalisation of x, a dense rows x channels x inner array: writes y to `result` or, given `grad`,
   grad_x. */
int norm_over_channels(const void *x, const void *grad, void *result, long rows, long channels, long inner,
                       long size, float alpha, float beta, float k, int bf16, int threads)
{
    Norm norm = {channels, size, alpha, beta, k};
    if (inner == 1) return norm_over_pixels(&norm, x, grad, result, rows, bf16, threads);
    long full = inner < SPAN ? inner : SPAN, spans = (inner + full - 1) / full, last = inner - (spans - 1) * full;
    long per_thread = buffers_length(&norm, full) + buffers_length(&norm, last) + channels * full;
    float *memory = malloc(threads * per_thread * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        /* The last span of a row may be narrower. Its margins are at other addresses, so it has buffers of its own. */
        float *own = memory + omp_get_thread_num() * per_thread;
        Buffers for_full = buffers_in(own, &norm, full);
        Buffers for_last = buffers_in(own + buffers_length(&norm, full), &norm, last);
        float *flat = own + per_thread - channels * full;
#pragma omp for schedule(static) collapse(2)
        for (long row = 0; row < rows; row++) {
            for (long index = 0; index < spans; index++) {
                long span = index == spans - 1 ? last : full, start = row * channels * inner + index * full;
                Buffers *buffers = index == spans - 1 ? &for_last : &for_full;
                gather(element(x, start, bf16), buffers->x, channels, inner, span, bf16);
                if (grad) {
                    gather(element(grad, start, bf16), buffers->grad, channels, inner, span, bf16);
                    normalise_backward(&norm, buffers, span, flat);
                } else {
                    normalise(&norm, buffers, span, flat);
                }
                scatter(flat, writable_element(result, start, bf16), channels, inner, span, bf16);
            }
        }
    }
    free(memory);
    return 1;
}

/* -------------------------------------------------------------------------------------- normalisation within a map */

/* One thread's rows of maps in channels_last. A ring holds `size` rows: row r of the map is at r % size. */
typedef struct {
    const Norm *norm;
    long height, length;                             /* rows of a map, and floats in a row */
    long before, after;                              /* how far a window extends from its centre */
    float *squares_ring, *spread_ring, *direct_ring; /* the last two only for gradients */
    float *squares, *spread;                         /* one row with margins, which stay 0 */
    float *restrict scale, *restrict power, *restrict inverse;
    int bf16;
    float *x_row, *grad_row, *result_row; /* of bf16 maps in fp32 */
} MapRows;

/* The floats that `map_rows_in` needs. */
static long map_rows_length(const Norm *norm, long length, int with_grad)
{
    return (with_grad ? 3 : 1) * norm->size * length + 2 * (length + (norm->size - 1) * norm->channels) + 6 * length;
}

/* `memory` must be zeros. */
static MapRows map_rows_in(float *memory, const Norm *norm, long height, long length, int with_grad, int bf16)
{
    long ring = norm->size * length, wide = length + (norm->size - 1) * norm->channels;
    float *squares = memory + (with_grad ? 3 : 1) * ring, *scale = squares + 2 * wide;
    return (MapRows){
        .norm = norm, .height = height, .length = length, .before = norm->size / 2, .after = (norm->size - 1) / 2,
        .squares_ring = memory, .spread_ring = memory + ring, .direct_ring = memory + 2 * ring,
        .squares = squares, .spread = squares + wide,
        .scale = scale, .power = scale + length, .inverse = scale + 2 * length,
        .bf16 = bf16, .x_row = scale + 3 * length, .grad_row = scale + 4 * length, .result_row = scale + 5 * length,
    };
}

/* One row of a map in fp32: the row itself, or a copy in `buffer`. */
static const float *row_of(const MapRows *rows, const void *map, long row, float *buffer)
{
    const void *found = element(map, row * rows->length, rows->bf16);
    if (!rows->bf16) return found;
    load_bf16(found, buffer, rows->length);
    return buffer;
}

static const float *ring_row(const float *ring, long row, long size, long length) { return ring + row % size * length; }

/* scale = the sum of a ring's rows from `first` to `last`, without those outside the map. */
static void add_rows(const MapRows *rows, const float *ring, long first, long last)
{
    long length = rows->length, size = rows->norm->size;
    float *restrict sums = rows->scale;
    if (first < 0) first = 0;
    if (last >= rows->height) last = rows->height - 1;
    memcpy(sums, ring_row(ring, first, size, length), length * sizeof(float));
    for (long row = first + 1; row <= last; row++) {
        const float *restrict from = ring_row(ring, row, size, length);
        for (long i = 0; i < length; i++) sums[i] += from[i];
    }
}

/* Puts the window sums along a row of x^2 into the ring of squares. */
static void square_row(const MapRows *rows, const float *restrict x, long row)
{
    long length = rows->length, size = rows->norm->size, channels = rows->norm->channels;
    float *restrict inside = rows->squares + rows->before * channels;
    for (long i = 0; i < length; i++) inside[i] = x[i] * x[i];
    window_sums(rows->squares, rows->squares_ring + row % size * length, length, size, channels);
}

/* Puts direct = grad * scale^-beta, and the window sums along the row of direct * x / scale, into their rings. */
static void spread_row(const MapRows *rows, const float *restrict x, const float *restrict grad, long row)
{
    long length = rows->length, size = rows->norm->size, channels = rows->norm->channels;
    const float *restrict power = rows->power, *restrict inverse = rows->inverse;
    float *restrict direct = rows->direct_ring + row % size * length;
    float *restrict inside = rows->spread + rows->after * channels;
    for (long i = 0; i < length; i++) {
        direct[i] = grad[i] * power[i];
        inside[i] = direct[i] * x[i] * inverse[i];
    }
    window_sums(rows->spread, rows->spread_ring + row % size * length, length, size, channels);
}

/* grad_x of one row, whose mirrored windows are complete in the rings. */
static void map_gradient_row(const MapRows *rows, const float *restrict x, float *restrict grad_x, long row)
{
    const float *restrict direct = ring_row(rows->direct_ring, row, rows->norm->size, rows->length);
    const float *restrict sums = rows->scale;
    float factor = 2 * rows->norm->alpha * rows->norm->beta;
    add_rows(rows, rows->spread_ring, row - rows->after, row + rows->before);
    for (long i = 0; i < rows->length; i++) grad_x[i] = direct[i] - factor * x[i] * sums[i];
}

/* Rows `start` to `end` - 1 of one map's y or, given `grad`, grad_x. */
static void norm_band(const MapRows *rows, const void *x, const void *grad, void *result, long start, long end)
{
    long height = rows->height, length = rows->length, before = rows->before, after = rows->after;
    long row = grad && start > after ? start - after : grad ? 0 : start; /* the next row to scale */
    long next = row > before ? row - before : 0;                         /* the next row to square */
    long stop = !grad ? end : end + before < height ? end + before : height;
    long out = start; /* the next row of grad_x */
    for (; row < stop; row++) {
        const float *restrict power = rows->power;
        for (; next <= row + after && next < height; next++) square_row(rows, row_of(rows, x, next, rows->x_row), next);
        add_rows(rows, rows->squares_ring, row - before, row + after);
        powers(rows->norm, rows->scale, rows->power, rows->inverse, length);
        const float *restrict values = row_of(rows, x, row, rows->x_row);
        if (!grad) {
            void *to = writable_element(result, row * length, rows->bf16);
            float *restrict y = rows->bf16 ? rows->result_row : to;
            for (long i = 0; i < length; i++) y[i] = values[i] * power[i];
            if (y != to) store_bf16(y, to, length);
            continue;
        }
        spread_row(rows, values, row_of(rows, grad, row, rows->grad_row), row);
        /* A row's gradient can be computed once the last row within its mirrored windows is in the rings. */
        for (; out < end && (out + before <= row || row == height - 1); out++) {
            void *to = writable_element(result, out * length, rows->bf16);
            float *grad_x = rows->bf16 ? rows->result_row : to;
            map_gradient_row(rows, row_of(rows, x, out, rows->x_row), grad_x, out);
            if (grad_x != to) store_bf16(grad_x, to, length);
        }
    }
}

/* Normalisation over size x size windows within each map, in channels_last: writes y to `result` or, given `grad`,
   grad_x. `alpha` is divided by the window's area. */
int norm_over_map(const void *x, const void *grad, void *result, long images, long height, long width, long channels,
                  long size, float alpha, float beta, float k, int bf16, int threads)
{
    Norm norm = {channels, size, alpha, beta, k};
    /* Bands compute the rows that their windows have in common twice. With enough images for all threads, a band is a
       whole map. */
    long band = images < 2 * threads && BAND < height ? BAND : height, bands = (height + band - 1) / band;
    long length = width * channels, per_thread = map_rows_length(&norm, length, grad != NULL);
    float *memory = calloc(threads * per_thread, sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *own = memory + omp_get_thread_num() * per_thread;
        MapRows rows = map_rows_in(own, &norm, height, length, grad != NULL, bf16);
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < images; image++) {
            for (long index = 0; index < bands; index++) {
                long map = image * height * length, start = index * band;
                long end = start + band < height ? start + band : height;
                norm_band(&rows, element(x, map, bf16), grad ? element(grad, map, bf16) : NULL,
                          writable_element(result, map, bf16), start, end);
            }
        }
    }
    free(memory);
    return 1;
}

/* ------------------------------------------------------------------------------------- with bias, ReLU and pooling */

/* Maps in channels_last. */
typedef struct {
    long images, height, width, channels, groups;
    long window, stride, out_height, out_width;
    int relu, bf16;
} Maps;

static long bands_of(long rows) { return (rows + BAND - 1) / BAND; }

/* x + bias, and the ReLU if it comes before normalisation. */
static void add_bias(const Maps *maps, const void *x, const float *restrict bias, float *restrict to, long count)
{
    load(x, to, count, maps->bf16);
    if (bias)
        for (long c = 0; c < count; c++) to[c] += bias[c];
    if (maps->relu == RELU_BEFORE)
        for (long c = 0; c < count; c++) to[c] = to[c] < 0 ? 0 : to[c];
}

/* Normalises a row of a map. `flat` is a buffer for the results of pixels normalised together. */
static void normalise_row(const Maps *maps, const Norm *norm, Buffers *buffers, float *flat, const void *x,
                          const float *bias, float *row)
{
    long channels = norm->channels, pitch = pitch_of(norm), together = together_of(norm);
    for (long group = 0; group < maps->groups; group++) {
        for (long first = 0; first < maps->width; first += together) {
            long count = maps->width - first < together ? maps->width - first : together;
            long at = first * maps->channels + group * channels;
            Norm some = joined(norm, count);
            for (long i = 0; i < count; i++)
                add_bias(maps, element(x, at + i * maps->channels, maps->bf16), bias ? bias + group * channels : NULL,
                         buffers->x + i * pitch, channels);
            normalise(&some, buffers, 1, flat);
            for (long i = 0; i < count; i++)
                memcpy(row + at + i * maps->channels, flat + i * pitch, channels * sizeof(float));
        }
    }
}

INLINE Vector vector_at(const float *from)
{
    Vector values;
    memcpy(&values, from, sizeof values);
    return values;
}

/* The largest values of one window in WIDTH channels, and their positions dh * window + dw within the window. */
INLINE void largest_in(const Maps *maps, const float *ring, long first, long at, Vector *largest, Mask *indices)
{
    long channels = maps->channels, length = maps->width * channels;
    Vector best = vector_at(ring_row(ring, first, maps->window, length) + at);
    Mask best_index = {0}, index = {0};
    for (long dh = 0; dh < maps->window; dh++) {
        const float *row = ring_row(ring, first + dh, maps->window, length) + at;
        for (long dw = 0; dw < maps->window; dw++) {
            Vector values = vector_at(row + dw * channels);
            /* A NaN counts as the largest value, and the last NaN wins, as in PyTorch. */
            Mask larger = (values > best) | (values != values);
            best = (Vector)(((Mask)values & larger) | ((Mask)best & ~larger));
            best_index = (index & larger) | (best_index & ~larger);
            index += 1;
        }
    }
    if (maps->relu == RELU_AFTER) {
        Mask off = best <= 0;
        best_index = (best_index & ~off) | (NO_ARGMAX & off);
        best = (Vector)((Mask)best & ~off);
    }
    *largest = best;
    *indices = best_index;
}

/* Pools one row of windows: the largest value of each, and its position within the window. `largest` is a buffer of one
   value per channel. A vector may be read beyond the end of the ring. */
static void pool_row(const Maps *maps, const float *ring, long first, float *largest, void *y, uint8_t *restrict argmax)
{
    long channels = maps->channels;
    for (long column = 0; column < maps->out_width; column++) {
        for (long c = 0; c < channels; c += WIDTH) {
            Vector values;
            Mask indices;
            largest_in(maps, ring, first, column * maps->stride * channels + c, &values, &indices);
            long rest = channels - c < WIDTH ? channels - c : WIDTH;
            uint8_t narrow[WIDTH];
            for (long i = 0; i < WIDTH; i++) narrow[i] = (uint8_t)indices[i];
            if (rest == WIDTH) {
                memcpy(largest + c, &values, sizeof values);
                memcpy(argmax + column * channels + c, narrow, WIDTH);
            } else {
                memcpy(largest + c, &values, rest * sizeof(float));
                memcpy(argmax + column * channels + c, narrow, rest);
            }
        }
        store(largest, writable_element(y, column * channels, maps->bf16), channels, maps->bf16);
    }
}

/* Writes the pooled y and the position of each maximum within its window. */
int lrn_pool_forward(const void *x, const float *bias, void *y, uint8_t *argmax, long images, long height, long width,
                     long channels, long groups, long size, float alpha, float beta, float k, long window, long stride,
                     int relu, int bf16, int threads)
{
    Norm norm = {channels / groups, size, alpha, beta, k};
    Maps maps = {images, height, width, channels, groups, window, stride,
                 (height - window) / stride + 1, (width - window) / stride + 1, relu, bf16};
    long bands = bands_of(maps.out_height), row_length = width * channels;
    Norm whole = joined(&norm, together_of(&norm));
    long per_thread = buffers_length(&whole, 1) + whole.channels + window * row_length + WIDTH + channels;
    float *memory = malloc(threads * per_thread * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *own = memory + omp_get_thread_num() * per_thread;
        Buffers buffers = buffers_in(own, &whole, 1);
        float *flat = own + buffers_length(&whole, 1), *ring = flat + whole.channels;
        float *largest = ring + window * row_length + WIDTH;
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < images; image++) {
            for (long band = 0; band < bands; band++) {
                long map = image * height * row_length;
                long end = (band + 1) * BAND < maps.out_height ? (band + 1) * BAND : maps.out_height;
                long next = band * BAND * stride; /* the first row that is not in the ring */
                for (long out = band * BAND; out < end; out++) {
                    long first = out * stride;
                    for (next = next < first ? first : next; next < first + window; next++)
                        normalise_row(&maps, &norm, &buffers, flat, element(x, map + next * row_length, bf16), bias,
                                      ring + next % window * row_length);
                    long at = (image * maps.out_height + out) * maps.out_width * channels;
                    pool_row(&maps, ring, first, largest, writable_element(y, at, bf16), argmax + at);
                }
            }
        }
    }
    free(memory);
    return 1;
}

/* upstream = the gradient of one row of the normalised map, from all windows that contain it. `values` is a buffer of one
   value per channel. */
static void unpool_row(const Maps *maps, const void *grad, const uint8_t *argmax, long row, float *restrict upstream,
                       float *restrict values)
{
    long channels = maps->channels, last = row / maps->stride;
    memset(upstream, 0, maps->width * channels * sizeof(float));
    if (last >= maps->out_height) last = maps->out_height - 1;
    for (long out = last; out >= 0 && row - out * maps->stride < maps->window; out--) {
        long dh = row - out * maps->stride;
        for (long column = 0; column < maps->out_width; column++) {
            long at = (out * maps->out_width + column) * channels;
            const uint8_t *restrict indices = argmax + at;
            load(element(grad, at, maps->bf16), values, channels, maps->bf16);
            for (long dw = 0; dw < maps->window; dw++) {
                float *restrict to = upstream + (column * maps->stride + dw) * channels;
                int32_t index = dh * maps->window + dw;
                for (long c = 0; c < channels; c++) to[c] += indices[c] == index ? values[c] : 0.0f;
            }
        }
    }
}

/* grad_x of a row of a map from `upstream`, the gradient of the normalised row. Adds the sums over pixels to `part`.
   `flat` is a buffer for the results of pixels normalised together. */
static void row_gradient(const Maps *maps, const Norm *norm, Buffers *buffers, float *flat, const void *x,
                         const float *bias, const float *upstream, void *grad_x, float *part)
{
    long channels = norm->channels, pitch = pitch_of(norm), together = together_of(norm);
    for (long group = 0; group < maps->groups; group++) {
        float *restrict sums = part + group * channels;
        for (long first = 0; first < maps->width; first += together) {
            long count = maps->width - first < together ? maps->width - first : together;
            long at = first * maps->channels + group * channels;
            Norm some = joined(norm, count);
            for (long i = 0; i < count; i++) {
                long from = at + i * maps->channels;
                add_bias(maps, element(x, from, maps->bf16), bias ? bias + group * channels : NULL,
                         buffers->x + i * pitch, channels);
                memcpy(buffers->grad + i * pitch, upstream + from, channels * sizeof(float));
            }
            normalise_backward(&some, buffers, 1, flat);
            for (long i = 0; i < count; i++) {
                float *restrict result = flat + i * pitch;
                const float *restrict values = buffers->x + i * pitch;
                if (maps->relu == RELU_BEFORE)
                    for (long c = 0; c < channels; c++) result[c] = values[c] <= 0 ? 0 : result[c];
                for (long c = 0; c < channels; c++) sums[c] += result[c];
                store(result, writable_element(grad_x, at + i * maps->channels, maps->bf16), channels, maps->bf16);
            }
        }
    }
}

/* The number of rows of `channels` values in `bias_parts`. */
long lrn_pool_bias_parts(long images, long height) { return images * bands_of(height); }

/* Writes grad_x, and the gradient of the bias as one partial sum per band of rows: their total does not depend on the
   number of threads. */
int lrn_pool_backward(const void *grad, const uint8_t *argmax, const void *x, const float *bias, void *grad_x,
                      float *bias_parts, long images, long height, long width, long channels, long groups, long size,
                      float alpha, float beta, float k, long window, long stride, int relu, int bf16, int threads)
{
    Norm norm = {channels / groups, size, alpha, beta, k};
    Maps maps = {images, height, width, channels, groups, window, stride,
                 (height - window) / stride + 1, (width - window) / stride + 1, relu, bf16};
    long bands = bands_of(height), row_length = width * channels, out_map = maps.out_height * maps.out_width * channels;
    Norm whole = joined(&norm, together_of(&norm));
    long per_thread = buffers_length(&whole, 1) + whole.channels + row_length + channels;
    float *memory = malloc(threads * per_thread * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *own = memory + omp_get_thread_num() * per_thread;
        Buffers buffers = buffers_in(own, &whole, 1);
        float *flat = own + buffers_length(&whole, 1), *upstream = flat + whole.channels;
        float *values = upstream + row_length;
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < images; image++) {
            for (long band = 0; band < bands; band++) {
                float *restrict part = bias_parts + (image * bands + band) * channels;
                long end = (band + 1) * BAND < height ? (band + 1) * BAND : height;
                memset(part, 0, channels * sizeof(float));
                for (long row = band * BAND; row < end; row++) {
                    long at = (image * height + row) * row_length;
                    unpool_row(&maps, element(grad, image * out_map, bf16), argmax + image * out_map, row, upstream,
                               values);
                    row_gradient(&maps, &norm, &buffers, flat, element(x, at, bf16), bias, upstream,
                                 writable_element(grad_x, at, bf16), part);
                }
            }
        }
    }
    free(memory);
    return 1;
}

/* ---------------------------------------------------------------------------------------------------------- update */

enum { PART = 4096 }; /* elements that a thread updates at a time: a few pages of each array */

/* velocity = momentum * velocity - decay * rate * weight - rate * gradient; weight += velocity; copy = weight in bf16.
   The gradient is fp32, or bf16 if `bf16` is not 0. */
int sgd_update(float *weight, const void *gradient, float *velocity, uint16_t *copy, long count, float rate, float decay,
               float momentum, int bf16, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long start = 0; start < count; start += PART) {
        long length = count - start < PART ? count - start : PART;
        float *restrict w = weight + start, *restrict v = velocity + start, loaded[PART];
        const float *restrict g = loaded;
        if (bf16)
            load_bf16((const uint16_t *)gradient + start, loaded, length);
        else
            g = (const float *)gradient + start;
        for (long i = 0; i < length; i++) {
            v[i] = momentum * v[i] - decay * rate * w[i] - rate * g[i];
            w[i] += v[i];
        }
        store_bf16(w, copy + start, length);
    }
    return 1;
}

/* --------------------------------------------------------------------------------------------------------- threads */

/* Calls run(0) ... run(tasks - 1), each in a thread of its own. Operators called by `run` use one thread each, because
   nested OpenMP regions are serial. */
int run_in_threads(void (*run)(long), long tasks, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (long task = 0; task < tasks; task++) run(task);
    return 1;
}

/* ------------------------------------------------------------------------------------------- Winograd convolution */

/* Where tiles are in maps in channels_last; see kernels/native/winograd.py. A cell is stride x stride pixels, whose
   channels are the cell's terms. A tile is q x q cells before a transform and p x p values per term after it, and
   starts `step` cells after the previous one. Transformed tiles are stored as position x group x tile x term, where
   position counts the p x p values. Tiles cover a mosaic of side x side maps, which start down_pitch pixels below and
   right_pitch pixels beside each other and have zeros between them. */
typedef struct {
    long images, height, width, depth, groups; /* depth: channels of one group */
    long stride, top, left;                    /* the padding above and left of a mosaic */
    long step, down, right;                    /* tiles per column and per row of a mosaic */
    long side, down_pitch, right_pitch;        /* side is 1 or 2, and 1 if the stride is not 1 */
} Grid;

static long mosaics_of(const Grid *grid)
{
    long in_mosaic = grid->side * grid->side;
    return (grid->images + in_mosaic - 1) / in_mosaic;
}

enum { LANES = 64, MAX_SIDE = 8 }; /* terms transformed together, and the largest p and q */

/* out = matrix * in * matrix^T for each of `count` terms, from q x q to p x p; matrix is p x q. */
INLINE void two_sided_product(const float *restrict matrix, long p, long q, const float *restrict in,
                              float *restrict out, long count)
{
    for (long t = 0; t < count; t += WIDTH) {
        Vector half[MAX_SIDE * MAX_SIDE], line[MAX_SIDE];
        for (long j = 0; j < q; j++) {
            for (long i = 0; i < q; i++) line[i] = *(const Vector *)(in + (i * q + j) * LANES + t);
            for (long a = 0; a < p; a++) {
                Vector sum = matrix[a * q] * line[0];
                for (long i = 1; i < q; i++) sum += matrix[a * q + i] * line[i];
                half[a * q + j] = sum;
            }
        }
        for (long a = 0; a < p; a++) {
            for (long j = 0; j < q; j++) line[j] = half[a * q + j];
            for (long b = 0; b < p; b++) {
                Vector sum = matrix[b * q] * line[0];
                for (long j = 1; j < q; j++) sum += matrix[b * q + j] * line[j];
                *(Vector *)(out + (a * p + b) * LANES + t) = sum;
            }
        }
    }
}

static void transform(const float *matrix, long p, long q, const float *in, float *out, long count)
{
    switch (q) { /* q is a compile-time constant in each case, so that the sums are unrolled. */
    case 2: two_sided_product(matrix, p, 2, in, out, count); break;
    case 3: two_sided_product(matrix, p, 3, in, out, count); break;
    case 4: two_sided_product(matrix, p, 4, in, out, count); break;
    case 5: two_sided_product(matrix, p, 5, in, out, count); break;
    case 6: two_sided_product(matrix, p, 6, in, out, count); break;
    case 7: two_sided_product(matrix, p, 7, in, out, count); break;
    default: two_sided_product(matrix, p, 8, in, out, count); break;
    }
}

/* Terms of a cell that are adjacent in memory: `count` values from `start` on of row y of the cell, that is from
   `channel` on of pixel x. `first` is the index of the first one among the lanes. */
typedef struct {
    long y, x, start, channel, first, count;
} Run;

/* Splits `count` terms from `first` on into runs, and returns the number of runs. */
static long runs_of(const Grid *grid, long first, long count, Run *runs)
{
    long row = grid->stride * grid->depth, together = grid->groups == 1 ? row : grid->depth, number = 0;
    for (long done = 0; done < count; done += runs[number++].count) {
        long term = first + done, rest = together - term % together;
        long start = term % row, length = rest < count - done ? rest : count - done;
        runs[number] = (Run){term / row, start / grid->depth, start, start % grid->depth, done, length};
    }
    return number;
}

/* The part of a run that is inside a map: its first element's offset in the maps, its index among the lanes, and its
   length, which is 0 outside. */
typedef struct {
    long at, lane, count;
} Piece;

INLINE Piece piece_of(const Grid *grid, const Run *run, long mosaic, long group, long row, long column)
{
    long y = row * grid->stride + run->y - grid->top, x = column * grid->stride - grid->left, image = mosaic;
    if (grid->side == 2) {
        long lower = y >= grid->down_pitch, righter = x >= grid->right_pitch;
        y -= lower * grid->down_pitch;
        x -= righter * grid->right_pitch;
        image = 4 * mosaic + 2 * lower + righter;
    }
    if (y < 0 || y >= grid->height || image >= grid->images) return (Piece){0, 0, 0};
    long start = run->start, end = start + run->count, low = -x * grid->depth, high = (grid->width - x) * grid->depth;
    long pixel = x + run->x, channel = run->channel;
    if (start < low) { /* the cell begins outside */
        start = low;
        pixel = channel = 0;
    }
    if (end > high) end = high;
    if (start >= end) return (Piece){0, 0, 0};
    long at = (((image * grid->height + y) * grid->width + pixel) * grid->groups + group) * grid->depth + channel;
    return (Piece){at, run->first + start - run->start, end - start};
}

/* Loads `count` elements from `at` on; given `mask`, those count as 0 where the mask is not above 0. */
INLINE void load_masked(const void *from, const void *mask, long at, float *restrict to, long count, int bf16)
{
    load(element(from, at, bf16), to, count, bf16);
    if (mask && bf16) {
        const uint16_t *restrict signs = (const uint16_t *)mask + at;
        for (long t = 0; t < count; t++) to[t] = from_bf16(signs[t]) <= 0 ? 0 : to[t];
    } else if (mask) {
        const float *restrict signs = (const float *)mask + at;
        for (long t = 0; t < count; t++) to[t] = signs[t] <= 0 ? 0 : to[t];
    }
}

/* values = matrix * tile * matrix^T for all tiles. Given `mask`, an array of the maps' shape, map elements count as 0
   where the mask is not above 0. Given `sums` (mosaics x channels, for a grid of stride 1 whose tiles do not overlap),
   the maps are added up there. */
int maps_to_tiles(const void *maps, const void *mask, void *values, float *sums, const float *matrix, long p, long q,
                  long images, long height, long width, long depth, long groups, long stride, long top, long left,
                  long step, long down, long right, long side, long down_pitch, long right_pitch, int bf16, int threads)
{
    Grid grid = {images, height, width,  depth, groups, stride,     top,
                 left,   step,   down,   right, side,   down_pitch, right_pitch};
    long terms = stride * stride * depth, mosaics = mosaics_of(&grid), tiles = mosaics * down * right;
    long line = bf16 ? 32 : 16; /* elements in a cache line; the processor does not foresee which ones are next */
    if (sums) memset(sums, 0, mosaics * groups * depth * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long mosaic = 0; mosaic < mosaics; mosaic++) {
        for (long group = 0; group < groups; group++) {
            _Alignas(Vector) float in[MAX_SIDE * MAX_SIDE * LANES], out[MAX_SIDE * MAX_SIDE * LANES];
            for (long done = 0; done < down * right * terms;) { /* terms of all tiles, at most LANES at a time */
                long tile = done / terms, first = done % terms;
                long row = tile / right * step, column = tile % right * step;
                long count = terms - first < LANES ? terms - first : LANES;
                Run runs[LANES];
                long number = runs_of(&grid, first, count, runs);
                /* The next terms are in the same pixels, or in those of the next tile. */
                long ahead = first + count < terms ? count : step * stride * groups * depth - first;
                memset(in, 0, q * q * LANES * sizeof(float));
                for (long i = 0; i < q; i++) {
                    for (long j = 0; j < q; j++) {
                        float *restrict cell = in + (i * q + j) * LANES;
                        for (long r = 0; r < number; r++) {
                            Piece piece = piece_of(&grid, &runs[r], mosaic, group, row + i, column + j);
                            if (!piece.count) continue;
                            load_masked(maps, mask, piece.at, cell + piece.lane, piece.count, bf16);
                            for (long t = 0; t < piece.count; t += line) {
                                __builtin_prefetch(element(maps, piece.at + ahead + t, bf16));
                                if (mask) __builtin_prefetch(element(mask, piece.at + ahead + t, bf16));
                            }
                        }
                        if (sums) {
                            float *restrict total = sums + (mosaic * groups + group) * depth + first;
                            for (long t = 0; t < count; t++) total[t] += cell[t];
                        }
                    }
                }
                transform(matrix, p, q, in, out, count);
                long to = (group * tiles + mosaic * down * right + tile) * terms + first;
                for (long position = 0; position < p * p; position++)
                    store(out + position * LANES, writable_element(values, to + position * groups * tiles * terms, bf16),
                          count, bf16);
                done += count;
            }
        }
    }
    return 1;
}

/* The adjoint of maps_to_tiles: each pixel becomes the sum of matrix * tile * matrix^T over the tiles that contain it,
   plus an optional bias, followed by a ReLU if `relu` is not 0. Overlapping tiles are summed in fp32. */
int tiles_to_maps(const void *values, const float *bias, void *maps, const float *matrix, long p, long q, int relu,
                  long images, long height, long width, long depth, long groups, long stride, long top, long left,
                  long step, long down, long right, long side, long down_pitch, long right_pitch, int bf16, int threads)
{
    Grid grid = {images, height, width,  depth, groups, stride,     top,
                 left,   step,   down,   right, side,   down_pitch, right_pitch};
    long terms = stride * stride * depth, mosaics = mosaics_of(&grid), tiles = mosaics * down * right;
    long in_mosaic = side * side, pixels = height * width;
    int summed = p > step;
    float *memory = summed ? malloc(threads * in_mosaic * pixels * depth * sizeof(float)) : NULL;
    if (summed && !memory) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long mosaic = 0; mosaic < mosaics; mosaic++) {
        for (long group = 0; group < groups; group++) {
            _Alignas(Vector) float in[MAX_SIDE * MAX_SIDE * LANES], out[MAX_SIDE * MAX_SIDE * LANES];
            /* The sums of one group of one mosaic, as maps of their own. */
            long first_image = mosaic * in_mosaic;
            long count_here = images - first_image < in_mosaic ? images - first_image : in_mosaic;
            float *sums = summed ? memory + omp_get_thread_num() * in_mosaic * pixels * depth : NULL;
            Grid of_sums = grid;
            if (summed) {
                memset(sums, 0, count_here * pixels * depth * sizeof(float));
                of_sums.groups = 1;
                of_sums.images = count_here;
            }
            memset(in, 0, sizeof in);
            for (long done = 0; done < down * right * terms;) { /* terms of all tiles, at most LANES at a time */
                long tile = done / terms, first = done % terms;
                long row = tile / right * step, column = tile % right * step;
                long count = terms - first < LANES ? terms - first : LANES;
                Run runs[LANES];
                long number = runs_of(&of_sums, first, count, runs);
                long from = (group * tiles + mosaic * down * right + tile) * terms + first;
                for (long position = 0; position < q * q; position++)
                    load(element(values, from + position * groups * tiles * terms, bf16), in + position * LANES, count,
                         bf16);
                transform(matrix, p, q, in, out, count);
                for (long a = 0; a < p; a++) {
                    for (long b = 0; b < p; b++) {
                        float *restrict cell = out + (a * p + b) * LANES;
                        if (bias)
                            for (long t = 0; t < count; t++) cell[t] += bias[group * depth + first + t];
                        if (relu)
                            for (long t = 0; t < count; t++) cell[t] = cell[t] < 0 ? 0 : cell[t];
                        for (long r = 0; r < number; r++) {
                            Piece piece = piece_of(&of_sums, &runs[r], summed ? 0 : mosaic, summed ? 0 : group, row + a,
                                                   column + b);
                            const float *restrict result = cell + piece.lane;
                            float *restrict to = sums + piece.at;
                            if (summed)
                                for (long t = 0; t < piece.count; t++) to[t] += result[t];
                            else if (piece.count)
                                store(result, writable_element(maps, piece.at, bf16), piece.count, bf16);
                        }
                    }
                }
                done += count;
            }
            for (long pixel = 0; summed && pixel < count_here * pixels; pixel++)
                store(sums + pixel * depth,
                      writable_element(maps, ((first_image * pixels + pixel) * groups + group) * depth, bf16), depth, bf16);
        }
    }
    free(memory);
    return 1;
}
