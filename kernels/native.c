/* What a CPU does in fp32 outside of matrix products: normalisation, alone and with bias, ReLU and max-pooling, and
   the transforms of convolution by minimal filtering.

   kernels/native_c.py builds this file with the machine's own compiler and calls it. kernels/native.py and
   kernels/winograd.py do the same in PyTorch, for machines without a compiler and for other dtypes, and say what the
   arguments mean. Each function reads and writes memory once and works in a thread's own cache in between; loops run
   over neighbouring channels or pixels, so that compilers make vector instructions of them. No result depends on the
   number of threads. Functions return 0 where memory is lacking, and 1. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    SPAN = 32,     /* pixels of a tile in NCHW: two cache lines of each channel */
    BAND = 8,      /* rows of a map that a thread takes at a time */
    NOWHERE = 255, /* the place of a pooled element that the ReLU took away */
    BUFFERS = 7,
};

enum { RELU_NONE, RELU_BEFORE, RELU_AFTER };

typedef struct {
    long channels; /* of one group */
    long size;     /* of the window */
    float alpha;   /* divided by size */
    float beta, k;
} Norm;

/* A tile is what is normalised at once: the channels of one pixel (channels_last, span 1) or of `span` neighbouring
   pixels (NCHW). Its buffers are flat, so that a window over channels is a sum of values `span` apart; `squares` and
   `spread` have the margins of a window around that, which are 0. */
typedef struct {
    float *x, *grad, *squares, *spread, *scale, *power, *inverse;
} Tile;

static long tile_room(const Norm *norm, long span) { return BUFFERS * (norm->channels + norm->size - 1) * span; }

static Tile tile_in(float *memory, const Norm *norm, long span)
{
    long room = tile_room(norm, span) / BUFFERS;
    memset(memory, 0, BUFFERS * room * sizeof(float));
    return (Tile){memory,           memory + room,     memory + 2 * room, memory + 3 * room,
                  memory + 4 * room, memory + 5 * room, memory + 6 * room};
}

/* sums[i] = terms[i] + terms[i + step] + ... + terms[i + (size - 1) * step] */
INLINE void sums_of(const float *restrict terms, float *restrict sums, long count, long size, long step)
{
    for (long i = 0; i < count; i++) {
        float sum = terms[i];
        for (long j = 1; j < size; j++) sum += terms[i + j * step];
        sums[i] = sum;
    }
}

static void window_sums(const float *restrict terms, float *restrict sums, long count, long size, long step)
{
    if (size == 5) { /* A number known when this is compiled, so that the loop over j is unrolled. */
        sums_of(terms, sums, count, 5, step);
        return;
    }
    memcpy(sums, terms, count * sizeof(float));
    for (long j = 1; j < size; j++)
        for (long i = 0; i < count; i++) sums[i] += terms[i + j * step];
}

/* scale = k + alpha * sums, in place of the sums; power = scale^-beta and inverse = 1 / scale. */
static void powers(const Norm *norm, float *restrict scale, float *restrict power, float *restrict inverse, long count)
{
    for (long i = 0; i < count; i++) scale[i] = norm->k + norm->alpha * scale[i];
    if (norm->beta == 0.75f) { /* The exponent in use needs no logarithm. */
        for (long i = 0; i < count; i++) {
            float root = 1.0f / sqrtf(scale[i]);
            inverse[i] = root * root;
            power[i] = root * sqrtf(root);
        }
    } else {
        for (long i = 0; i < count; i++) {
            inverse[i] = 1.0f / scale[i];
            power[i] = powf(scale[i], -norm->beta);
        }
    }
}

/* The powers of tile->x's scales. */
static void scales(const Norm *norm, Tile *tile, long span)
{
    long count = norm->channels * span;
    const float *restrict x = tile->x;
    float *restrict inside = tile->squares + norm->size / 2 * span;
    for (long i = 0; i < count; i++) inside[i] = x[i] * x[i];
    window_sums(tile->squares, tile->scale, count, norm->size, span);
    powers(norm, tile->scale, tile->power, tile->inverse, count);
}

/* y = x * scale^-beta, of tile->x */
static void normalise(const Norm *norm, Tile *tile, long span, float *restrict y)
{
    long count = norm->channels * span;
    const float *restrict x = tile->x, *restrict power = tile->power;
    scales(norm, tile, span);
    for (long i = 0; i < count; i++) y[i] = x[i] * power[i];
}

/* grad_x = grad * scale^-beta - 2 alpha beta / n * x * (mirrored window sums of grad * x * scale^(-beta - 1)) */
static void normalise_backward(const Norm *norm, Tile *tile, long span, float *restrict grad_x)
{
    long count = norm->channels * span;
    float factor = 2 * norm->alpha * norm->beta;
    const float *restrict x = tile->x, *restrict grad = tile->grad, *restrict inverse = tile->inverse;
    float *restrict inside = tile->spread + (norm->size - 1) / 2 * span;
    float *restrict direct = tile->power, *restrict sums = tile->scale;
    scales(norm, tile, span);
    for (long i = 0; i < count; i++) {
        direct[i] *= grad[i];
        inside[i] = direct[i] * x[i] * inverse[i];
    }
    window_sums(tile->spread, sums, count, norm->size, span);
    for (long i = 0; i < count; i++) grad_x[i] = direct[i] - factor * x[i] * sums[i];
}

/* The values of a tile, out of a tensor whose channels lie `inner` apart, and back. */
static void gather(const float *restrict tensor, float *restrict flat, long channels, long inner, long span)
{
    if (inner == 1)
        memcpy(flat, tensor, channels * sizeof(float));
    else
        for (long c = 0; c < channels; c++) memcpy(flat + c * span, tensor + c * inner, span * sizeof(float));
}

static void scatter(const float *restrict flat, float *restrict tensor, long channels, long inner, long span)
{
    for (long c = 0; c < channels; c++) memcpy(tensor + c * inner, flat + c * span, span * sizeof(float));
}

/* y or, where there is a `grad`, grad_x in its stead; all are rows x channels x inner. 0 where memory is lacking. */
int norm_over_channels(const float *x, const float *grad, float *result, long rows, long channels, long inner,
                       long size, float alpha, float beta, float k, int threads)
{
    Norm norm = {channels, size, alpha, beta, k};
    long full = inner < SPAN ? inner : SPAN, tiles = (inner + full - 1) / full, last = inner - (tiles - 1) * full;
    long room = tile_room(&norm, full) + tile_room(&norm, last) + channels * full;
    float *memory = malloc(threads * room * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        /* The last tile of a row may be narrower, and then its margins lie elsewhere. */
        float *own = memory + omp_get_thread_num() * room;
        Tile whole = tile_in(own, &norm, full), rest = tile_in(own + tile_room(&norm, full), &norm, last);
        float *flat = own + room - channels * full;
#pragma omp for schedule(static) collapse(2)
        for (long row = 0; row < rows; row++) {
            for (long index = 0; index < tiles; index++) {
                long span = index == tiles - 1 ? last : full, start = row * channels * inner + index * full;
                Tile *tile = index == tiles - 1 ? &rest : &whole;
                float *place = inner == 1 ? result + start : flat;
                gather(x + start, tile->x, channels, inner, span);
                if (grad) {
                    gather(grad + start, tile->grad, channels, inner, span);
                    normalise_backward(&norm, tile, span, place);
                } else {
                    normalise(&norm, tile, span, place);
                }
                if (place == flat) scatter(flat, result + start, channels, inner, span);
            }
        }
    }
    free(memory);
    return 1;
}

/* -------------------------------------------------------------------------------------- normalisation within a map */

/* `size` rows of window sums along a map's rows; row r of the map lies at r % size. */
static const float *ring_row(const float *ring, long row, long size, long length) { return ring + row % size * length; }

/* sums = the rows from `first` to `last` that the map has, added in their order. */
static void add_rows(const float *ring, float *restrict sums, long first, long last, long height, long size,
                     long length)
{
    if (first < 0) first = 0;
    if (last >= height) last = height - 1;
    memcpy(sums, ring_row(ring, first, size, length), length * sizeof(float));
    for (long row = first + 1; row <= last; row++) {
        const float *restrict from = ring_row(ring, row, size, length);
        for (long i = 0; i < length; i++) sums[i] += from[i];
    }
}

/* y or, where there is a `grad`, grad_x in its stead, of maps in channels_last; windows are size x size, and `alpha` is
   divided by their area. 0 where memory is lacking. */
int norm_over_map(const float *x, const float *grad, float *result, long images, long height, long width, long channels,
                  long size, float alpha, float beta, float k, int threads)
{
    Norm norm = {channels, size, alpha, beta, k};
    /* Bands repeat the rows that their windows share, so there are none where images suffice for all threads. */
    long band = images < 2 * threads && BAND < height ? BAND : height, bands = (height + band - 1) / band;
    long length = width * channels, wide = length + (size - 1) * channels, rings = (grad ? 3 : 1) * size * length;
    long room = rings + 2 * wide + 3 * length, before = size / 2, after = (size - 1) / 2;
    float *memory = calloc(threads * room, sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *squares_ring = memory + omp_get_thread_num() * room;
        float *spread_ring = squares_ring + size * length, *direct_ring = spread_ring + size * length;
        float *squares = squares_ring + rings, *spread = squares + wide; /* rows with margins, which stay 0 */
        float *scale = spread + wide, *restrict power = scale + length, *restrict inverse = power + length;
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < images; image++) {
            for (long part = 0; part < bands; part++) {
                const float *map = x + image * height * length;
                long start = part * band, end = start + band < height ? start + band : height;
                long row = grad && start > after ? start - after : grad ? 0 : start; /* the next to be scaled */
                long next = row > before ? row - before : 0;                         /* the next to be squared */
                long stop = !grad ? end : end + before < height ? end + before : height;
                long out = start;
                for (; row < stop; row++) {
                    for (; next <= row + after && next < height; next++) {
                        const float *restrict from = map + next * length;
                        float *restrict inside = squares + before * channels;
                        for (long i = 0; i < length; i++) inside[i] = from[i] * from[i];
                        window_sums(squares, squares_ring + next % size * length, length, size, channels);
                    }
                    add_rows(squares_ring, scale, row - before, row + after, height, size, length);
                    powers(&norm, scale, power, inverse, length);
                    const float *restrict values = map + row * length;
                    if (!grad) {
                        float *restrict y = result + (image * height + row) * length;
                        for (long i = 0; i < length; i++) y[i] = values[i] * power[i];
                        continue;
                    }
                    const float *restrict upstream = grad + (image * height + row) * length;
                    float *restrict direct = direct_ring + row % size * length;
                    float *restrict inside = spread + after * channels;
                    for (long i = 0; i < length; i++) {
                        direct[i] = upstream[i] * power[i];
                        inside[i] = direct[i] * values[i] * inverse[i];
                    }
                    window_sums(spread, spread_ring + row % size * length, length, size, channels);
                    /* A row's gradient can be made once the last row that its mirrored window reaches is there. */
                    for (; out < end && (out + before <= row || row == height - 1); out++) {
                        float *restrict grad_x = result + (image * height + out) * length;
                        const float *restrict own = map + out * length;
                        const float *restrict kept = ring_row(direct_ring, out, size, length);
                        float factor = 2 * norm.alpha * norm.beta;
                        add_rows(spread_ring, scale, out - after, out + before, height, size, length);
                        for (long i = 0; i < length; i++) grad_x[i] = kept[i] - factor * own[i] * scale[i];
                    }
                }
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
    int relu;
} Maps;

static long bands_of(long rows) { return (rows + BAND - 1) / BAND; }

/* x + bias, behind a ReLU where that comes first. */
static void biased(const Maps *maps, const float *restrict x, const float *restrict bias, float *restrict to,
                   long count)
{
    if (bias)
        for (long c = 0; c < count; c++) to[c] = x[c] + bias[c];
    else
        memcpy(to, x, count * sizeof(float));
    if (maps->relu == RELU_BEFORE)
        for (long c = 0; c < count; c++) to[c] = to[c] < 0 ? 0 : to[c];
}

static void normalise_row(const Maps *maps, const Norm *norm, Tile *tile, const float *x, const float *bias, float *row)
{
    for (long pixel = 0; pixel < maps->width; pixel++) {
        for (long group = 0; group < maps->groups; group++) {
            long first = group * norm->channels, at = pixel * maps->channels + first;
            biased(maps, x + at, bias ? bias + first : NULL, tile->x, norm->channels);
            normalise(norm, tile, 1, row + at);
        }
    }
}

/* The largest value of each window of one row of windows, and dh * window + dw of where in it that lies. */
static void pool_row(const Maps *maps, const float *ring, long first, float *restrict largest, int32_t *restrict places,
                     float *restrict y, uint8_t *restrict kept)
{
    long channels = maps->channels, length = maps->width * channels;
    for (long column = 0; column < maps->out_width; column++) {
        const float *restrict corner = ring_row(ring, first, maps->window, length) + column * maps->stride * channels;
        for (long c = 0; c < channels; c++) {
            largest[c] = corner[c];
            places[c] = 0;
        }
        for (long dh = 0; dh < maps->window; dh++) {
            const float *row = ring_row(ring, first + dh, maps->window, length);
            for (long dw = 0; dw < maps->window; dw++) {
                const float *restrict values = row + (column * maps->stride + dw) * channels;
                int32_t place = dh * maps->window + dw;
                for (long c = 0; c < channels; c++) {
                    /* A NaN is larger than anything, and the last one stands, as in PyTorch. */
                    int larger = (values[c] > largest[c]) | (values[c] != values[c]);
                    largest[c] = larger ? values[c] : largest[c];
                    places[c] = larger ? place : places[c];
                }
            }
        }
        float *restrict out = y + column * channels;
        uint8_t *restrict out_places = kept + column * channels;
        if (maps->relu == RELU_AFTER) {
            for (long c = 0; c < channels; c++) {
                places[c] = largest[c] <= 0 ? NOWHERE : places[c];
                largest[c] = largest[c] <= 0 ? 0 : largest[c];
            }
        }
        for (long c = 0; c < channels; c++) out[c] = largest[c];
        for (long c = 0; c < channels; c++) out_places[c] = (uint8_t)places[c];
    }
}

/* The pooled result and the places of its elements. 0 where memory is lacking. */
int lrn_pool_forward(const float *x, const float *bias, float *y, uint8_t *kept, long images, long height, long width,
                     long channels, long groups, long size, float alpha, float beta, float k, long window, long stride,
                     int relu, int threads)
{
    Norm norm = {channels / groups, size, alpha, beta, k};
    Maps maps = {images, height, width, channels, groups, window, stride,
                 (height - window) / stride + 1, (width - window) / stride + 1, relu};
    long bands = bands_of(maps.out_height), row_length = width * channels;
    long room = tile_room(&norm, 1) + window * row_length + 2 * channels;
    float *memory = malloc(threads * room * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *own = memory + omp_get_thread_num() * room;
        Tile tile = tile_in(own, &norm, 1);
        float *ring = own + tile_room(&norm, 1), *largest = ring + window * row_length;
        int32_t *places = (int32_t *)(largest + channels);
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < images; image++) {
            for (long band = 0; band < bands; band++) {
                const float *map = x + image * height * row_length;
                long end = (band + 1) * BAND < maps.out_height ? (band + 1) * BAND : maps.out_height;
                long next = band * BAND * stride; /* the first row that is not in the ring */
                for (long out = band * BAND; out < end; out++) {
                    long first = out * stride;
                    for (next = next < first ? first : next; next < first + window; next++)
                        normalise_row(&maps, &norm, &tile, map + next * row_length, bias,
                                      ring + next % window * row_length);
                    long at = (image * maps.out_height + out) * maps.out_width * channels;
                    pool_row(&maps, ring, first, largest, places, y + at, kept + at);
                }
            }
        }
    }
    free(memory);
    return 1;
}

/* What reaches one row of the normalised map from the windows over it. */
static void unpool_row(const Maps *maps, const float *grad, const uint8_t *kept, long row, float *restrict upstream)
{
    long channels = maps->channels, last = row / maps->stride;
    memset(upstream, 0, maps->width * channels * sizeof(float));
    if (last >= maps->out_height) last = maps->out_height - 1;
    for (long out = last; out >= 0 && row - out * maps->stride < maps->window; out--) {
        long dh = row - out * maps->stride;
        for (long column = 0; column < maps->out_width; column++) {
            long at = (out * maps->out_width + column) * channels;
            const float *restrict values = grad + at;
            const uint8_t *restrict places = kept + at;
            for (long dw = 0; dw < maps->window; dw++) {
                float *restrict to = upstream + (column * maps->stride + dw) * channels;
                int32_t place = dh * maps->window + dw;
                for (long c = 0; c < channels; c++) to[c] += places[c] == place ? values[c] : 0.0f;
            }
        }
    }
}

/* How many rows of channels `bias_parts` must have room for. */
long lrn_pool_bias_parts(long images, long height) { return images * bands_of(height); }

/* grad_x, and the bias' gradient in parts: one for each band of rows, so that their sum does not depend on threads.
   0 where memory is lacking. */
int lrn_pool_backward(const float *grad, const uint8_t *kept, const float *x, const float *bias, float *grad_x,
                      float *bias_parts, long images, long height, long width, long channels, long groups, long size,
                      float alpha, float beta, float k, long window, long stride, int relu, int threads)
{
    Norm norm = {channels / groups, size, alpha, beta, k};
    Maps maps = {images, height, width, channels, groups, window, stride,
                 (height - window) / stride + 1, (width - window) / stride + 1, relu};
    long bands = bands_of(height), row_length = width * channels, out_map = maps.out_height * maps.out_width * channels;
    long room = tile_room(&norm, 1) + row_length;
    float *memory = malloc(threads * room * sizeof(float));
    if (!memory) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *own = memory + omp_get_thread_num() * room;
        Tile tile = tile_in(own, &norm, 1);
        float *upstream = own + tile_room(&norm, 1);
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < images; image++) {
            for (long band = 0; band < bands; band++) {
                float *restrict part = bias_parts + (image * bands + band) * channels;
                long end = (band + 1) * BAND < height ? (band + 1) * BAND : height;
                memset(part, 0, channels * sizeof(float));
                for (long row = band * BAND; row < end; row++) {
                    unpool_row(&maps, grad + image * out_map, kept + image * out_map, row, upstream);
                    for (long pixel = 0; pixel < width; pixel++) {
                        for (long group = 0; group < groups; group++) {
                            long first = group * norm.channels, inside = pixel * channels + first;
                            long at = (image * height + row) * row_length + inside;
                            float *restrict result = grad_x + at;
                            biased(&maps, x + at, bias ? bias + first : NULL, tile.x, norm.channels);
                            memcpy(tile.grad, upstream + inside, norm.channels * sizeof(float));
                            normalise_backward(&norm, &tile, 1, result);
                            if (relu == RELU_BEFORE)
                                for (long c = 0; c < norm.channels; c++) result[c] = tile.x[c] <= 0 ? 0 : result[c];
                            for (long c = 0; c < norm.channels; c++) part[first + c] += result[c];
                        }
                    }
                }
            }
        }
    }
    free(memory);
    return 1;
}

/* --------------------------------------------------------------------------------------------------------- threads */

/* run(share) for each share, by a thread of its own. What has threads within has one there, as OpenMP does not nest. */
int in_threads(void (*run)(long), long shares, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (long share = 0; share < shares; share++) run(share);
    return 1;
}

/* ----------------------------------------------------------------------------------------------- minimal filtering */

/* Tiles of maps in channels_last, for kernels/winograd.py. A cell is stride x stride pixels, whose channels are the
   cell's terms; a tile is q x q cells, or p x p of its values behind a transform, and begins `step` cells after the one
   before. Values lie by place, group, tile and term. */
typedef struct {
    long images, height, width, depth, groups; /* depth: channels of a group */
    long stride, top, left;                    /* the padding above and left of the map */
    long step, down, right;                    /* tiles below and beside each other */
} Grid;

enum { CHUNK = 64, LARGEST = 8 }; /* terms transformed at once, and the largest p and q */

/* matrix * in * matrix^T for each of CHUNK terms: q x q to p x p; matrix is p x q. */
INLINE void sandwich(const float *restrict matrix, long p, long q, const float *restrict in, float *restrict half,
                     float *restrict out)
{
    for (long a = 0; a < p; a++)
        for (long j = 0; j < q; j++)
            for (long t = 0; t < CHUNK; t++) {
                float sum = 0;
                for (long i = 0; i < q; i++) sum += matrix[a * q + i] * in[(i * q + j) * CHUNK + t];
                half[(a * q + j) * CHUNK + t] = sum;
            }
    for (long a = 0; a < p; a++)
        for (long b = 0; b < p; b++)
            for (long t = 0; t < CHUNK; t++) {
                float sum = 0;
                for (long j = 0; j < q; j++) sum += matrix[b * q + j] * half[(a * q + j) * CHUNK + t];
                out[(a * p + b) * CHUNK + t] = sum;
            }
}

static void transform(const float *matrix, long p, long q, const float *in, float *half, float *out)
{
    switch (q) { /* Numbers known when this is compiled, so that the sums are unrolled. */
    case 2: sandwich(matrix, p, 2, in, half, out); break;
    case 3: sandwich(matrix, p, 3, in, half, out); break;
    case 4: sandwich(matrix, p, 4, in, half, out); break;
    case 5: sandwich(matrix, p, 5, in, half, out); break;
    case 6: sandwich(matrix, p, 6, in, half, out); break;
    case 7: sandwich(matrix, p, 7, in, half, out); break;
    default: sandwich(matrix, p, 8, in, half, out); break;
    }
}

/* Terms that are neighbours in a map: channels from `channel` on of the pixel (y, x) of a cell. */
typedef struct {
    long y, x, channel, first, count;
} Run;

/* The runs of a chunk of `count` terms from `first` on, whose own first terms are counted from there. */
static long runs_of(const Grid *grid, long first, long count, Run *runs)
{
    long number = 0;
    for (long done = 0; done < count; done += runs[number++].count) {
        long pixel = (first + done) / grid->depth, channel = (first + done) % grid->depth;
        long rest = grid->depth - channel < count - done ? grid->depth - channel : count - done;
        runs[number] = (Run){pixel / grid->stride, pixel % grid->stride, channel, done, rest};
    }
    return number;
}

/* Where a run of a cell lies in one image, or -1 outside of it. */
INLINE long place_of(const Grid *grid, const Run *run, long group, long row, long column)
{
    long y = row * grid->stride + run->y - grid->top, x = column * grid->stride + run->x - grid->left;
    if (y < 0 || y >= grid->height || x < 0 || x >= grid->width) return -1;
    return ((y * grid->width + x) * grid->groups + group) * grid->depth + run->channel;
}

/* values = the transforms of all tiles. Where there is a `mask`, what lies at values of it that are not above 0 counts
   as 0. Where there are `sums` (images x channels, of a grid of stride 1), each tile's first step x step cells are
   added up there. */
int tiles_of_maps(const float *maps, const float *mask, float *values, float *sums, const float *matrix, long p, long q,
                  long images, long height, long width, long depth, long groups, long stride, long top, long left,
                  long step, long down, long right, int threads)
{
    Grid grid = {images, height, width, depth, groups, stride, top, left, step, down, right};
    long terms = stride * stride * depth, tiles = images * down * right, map = height * width * depth * groups;
    if (sums) memset(sums, 0, images * groups * depth * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long image = 0; image < images; image++) {
        for (long group = 0; group < groups; group++) {
            float in[LARGEST * LARGEST * CHUNK], half[LARGEST * LARGEST * CHUNK], out[LARGEST * LARGEST * CHUNK];
            const float *restrict from = maps + image * map, *restrict signs = mask ? mask + image * map : NULL;
            for (long part = 0; part < down * right * terms;) {
                long tile = part / terms, first = part % terms;
                long row = tile / right * step, column = tile % right * step;
                long count = terms - first < CHUNK ? terms - first : CHUNK;
                Run runs[CHUNK];
                long number = runs_of(&grid, first, count, runs);
                memset(in, 0, q * q * CHUNK * sizeof(float));
                for (long i = 0; i < q; i++) {
                    for (long j = 0; j < q; j++) {
                        float *restrict cell = in + (i * q + j) * CHUNK;
                        for (long r = 0; r < number; r++) {
                            long at = place_of(&grid, &runs[r], group, row + i, column + j);
                            if (at < 0) continue;
                            float *restrict to = cell + runs[r].first;
                            if (signs)
                                for (long t = 0; t < runs[r].count; t++) to[t] = signs[at + t] <= 0 ? 0 : from[at + t];
                            else
                                for (long t = 0; t < runs[r].count; t++) to[t] = from[at + t];
                        }
                        if (sums && i < step && j < step) {
                            float *restrict total = sums + (image * groups + group) * depth + first;
                            for (long t = 0; t < count; t++) total[t] += cell[t];
                        }
                    }
                }
                transform(matrix, p, q, in, half, out);
                float *restrict to = values + (group * tiles + image * down * right + tile) * terms + first;
                for (long place = 0; place < p * p; place++)
                    memcpy(to + place * groups * tiles * terms, out + place * CHUNK, count * sizeof(float));
                part += count;
            }
        }
    }
    return 1;
}

/* The adjoint: maps = the sums, over the tiles that a pixel lies in, of transforms of `values`, plus a bias where there
   is one, behind a ReLU where one is asked for. */
int maps_of_tiles(const float *values, const float *bias, float *maps, const float *matrix, long p, long q, int relu,
                  long images, long height, long width, long depth, long groups, long stride, long top, long left,
                  long step, long down, long right, int threads)
{
    Grid grid = {images, height, width, depth, groups, stride, top, left, step, down, right};
    long terms = stride * stride * depth, tiles = images * down * right, map = height * width * depth * groups;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long image = 0; image < images; image++) {
        for (long group = 0; group < groups; group++) {
            float in[LARGEST * LARGEST * CHUNK], half[LARGEST * LARGEST * CHUNK], out[LARGEST * LARGEST * CHUNK];
            float *restrict to = maps + image * map;
            memset(in, 0, sizeof in);
            if (p > step) /* Tiles overlap, and are added to what is there. */
                for (long pixel = 0; pixel < height * width; pixel++)
                    memset(to + (pixel * groups + group) * depth, 0, depth * sizeof(float));
            for (long part = 0; part < down * right * terms;) {
                long tile = part / terms, first = part % terms;
                long row = tile / right * step, column = tile % right * step;
                long count = terms - first < CHUNK ? terms - first : CHUNK;
                Run runs[CHUNK];
                long number = runs_of(&grid, first, count, runs);
                const float *restrict from = values + (group * tiles + image * down * right + tile) * terms + first;
                for (long place = 0; place < q * q; place++)
                    memcpy(in + place * CHUNK, from + place * groups * tiles * terms, count * sizeof(float));
                transform(matrix, p, q, in, half, out);
                for (long a = 0; a < p; a++) {
                    for (long b = 0; b < p; b++) {
                        float *restrict cell = out + (a * p + b) * CHUNK;
                        if (bias)
                            for (long t = 0; t < count; t++) cell[t] += bias[group * depth + first + t];
                        if (relu)
                            for (long t = 0; t < count; t++) cell[t] = cell[t] < 0 ? 0 : cell[t];
                        for (long r = 0; r < number; r++) {
                            long at = place_of(&grid, &runs[r], group, row + a, column + b);
                            const float *restrict result = cell + runs[r].first;
                            if (at < 0) continue;
                            if (p > step)
                                for (long t = 0; t < runs[r].count; t++) to[at + t] += result[t];
                            else
                                for (long t = 0; t < runs[r].count; t++) to[at + t] = result[t];
                        }
                    }
                }
                part += count;
            }
        }
    }
    return 1;
}
