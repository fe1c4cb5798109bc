// L1 and SSIM of a render against a photo, and their gradient. Included once by kernel_isa.cpp.
//
// A task takes a strip of one channel from top to bottom, ten rows at a time, so that all it holds stays in the cache:
// moments blurred down, then across; SSIM and its derivatives by the moments; these blurred across, then, with the ten
// rows before, down. Strips share nothing: each computes five rows more above and below. The window is cut off at the
// border of the image, zeros beyond.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "maths.h"
#include "vector.h"

namespace {

constexpr int kRadius = 5;
constexpr int kRows = 2 * kRadius;  // at a time; their windows reach over another ten
constexpr int kStripRows = 100;     // about; fixed, so that sums do not depend on the number of threads
constexpr int kMargin = 16;         // zero floats on either side of a buffered row
static_assert(kMargin % kWide == 0, "a blur across reads one register on either side");

struct SsimCall {
  const float *render, *target, *mean, *mean_square, *weight;
  float *gradient, *out_mean, *out_square;
  double* partial;
  bool* out_of_memory;  // set by any task; never cleared
  int width, height;
  int strips, strip_rows;  // of each channel
  size_t pitch;            // floats from one buffered row to the next
  float share;
  float window[kRadius + 1];  // Gaussian, sigma 1.5, by the distance from its centre; the eleven sum to 1
};

void prepare_call(SsimCall& call, int width, int height) {
  double total = 0.0, value[kRadius + 1];
  for (int k = 0; k <= kRadius; ++k) {
    value[k] = exp(-0.5 * k * k / 2.25);
    total += k == 0 ? value[k] : 2.0 * value[k];
  }
  for (int k = 0; k <= kRadius; ++k) call.window[k] = static_cast<float>(value[k] / total);
  call.width = width, call.height = height;
  const int wanted = larger(1, (height + kStripRows - 1) / kStripRows);
  call.strip_rows = larger(1, (height + wanted * kRows - 1) / (wanted * kRows)) * kRows;
  call.strips = (height + call.strip_rows - 1) / call.strip_rows;
  // Odd in cache lines, or the rows of some widths would all fall in the same sets of the cache.
  call.pitch = (static_cast<size_t>(width + 15) / 16 + 2 * kMargin / 16) | 1;
  call.pitch *= 16;
}

struct Strip {
  size_t channel;   // offset of its plane
  int first, last;  // rows
};

Strip find_strip(const SsimCall& call, int32_t task) {
  const int first = task % call.strips * call.strip_rows;
  const size_t plane = static_cast<size_t>(call.width) * call.height;
  return {plane * (task / call.strips), first, smaller(first + call.strip_rows, call.height)};
}

struct Memory {  // of one task, on the heap of the thread
  float* data;
  // `rows` buffered rows of zeros, then `more` floats, a multiple of 16.
  Memory(const SsimCall& call, int rows, size_t more)
      : data(static_cast<float*>(aligned_alloc(64, (rows * call.pitch + more) * sizeof(float)))) {
    if (data != nullptr) memset(data, 0, rows * call.pitch * sizeof(float));
    else __atomic_store_n(call.out_of_memory, true, __ATOMIC_RELAXED);
  }
  ~Memory() { free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

struct Taps {
  Wide w[kRadius + 1];
  explicit Taps(const SsimCall& call) {
    for (int k = 0; k <= kRadius; ++k) w[k] = wide(call.window[k]);
  }
};

// The window over eleven values, those at the same distance from its centre added first.
inline Wide under_window(const Taps& taps, const Wide* in) {
  Wide total = taps.w[0] * in[kRadius];
  for (int k = 1; k <= kRadius; ++k) total += taps.w[k] * (in[kRadius - k] + in[kRadius + k]);
  return total;
}

// write(i, blurred row i) for ten rows, out of the twenty that read(i) gives.
template <int i = 0, typename Read, typename Write>
__attribute__((always_inline)) inline void blur_down_from(const Taps& taps, Wide* in, const Read& read,
                                                          const Write& write) {
  if constexpr (i < kRows) {
    asm volatile("" : : : "memory");  // or the compiler loads all twenty first, into more registers than there are
    in[i + kRows] = read(i + kRows);
    write(i, under_window(taps, in + i));
    blur_down_from<i + 1>(taps, in, read, write);
  }
}
template <typename Read, typename Write>
__attribute__((always_inline)) inline void blur_down(const Taps& taps, const Read& read, const Write& write) {
  // 32 registers (AVX-512) hold the taps beside the eleven rows; 16 do not, and then memory is the better place.
  const Taps held = taps;
  Wide in[2 * kRows];
  for (int i = 0; i < kRows; ++i) in[i] = read(i);
  blur_down_from(kWide == 16 ? held : taps, in, read, write);
}

// One register of a row blurred, `in` aligned; reads kMargin floats on both sides. Half by loads and half by shuffles,
// so that it waits for neither.
template <int k>
inline Wide blur_across_from(const Taps& taps, const float* in, Wide total) {
  if constexpr (k <= kRadius)
    return blur_across_from<k + 1>(taps, in, total + taps.w[k] * (load_wide(in - k) + load_ahead<k>(in)));
  return total;
}
inline Wide blur_across(const Taps& taps, const float* in) {
  return blur_across_from<1>(taps, in, taps.w[0] * load_wide(in));
}

// Pointers to twenty rows of a plane from row `first` on; `zeros` where the image has none.
inline void find_rows(const float* plane, const SsimCall& call, int first, const float* zeros,
                      const float* rows[2 * kRows]) {
  for (int i = 0; i < 2 * kRows; ++i) {
    const int y = first + i;
    rows[i] = y >= 0 && y < call.height ? plane + static_cast<size_t>(y) * call.width : zeros;
  }
}

// a and a^2, and with a third kind a b, blurred down: ten buffered rows of each kind, one after the other.
template <int kinds>
void blur_moments_down(const SsimCall& call, const Taps& taps, const float* const* a, const float* const* b,
                       float* out) {
  const size_t pitch = call.pitch;
  const size_t ahead = static_cast<size_t>(kRows) * call.width;  // the next ten rows, fetched while these are blurred
  const auto column = [&](int x, const auto& load) __attribute__((always_inline)) {
    float* const at = out + kMargin + x;
    blur_down(taps, [&](int i) { return load(a[i] + x); },
              [&](int i, Wide value) {
                __builtin_prefetch(a[i + kRows] + x + ahead);
                store_wide(at + i * pitch, value);
              });
    blur_down(taps, [&](int i) { const Wide value = load(a[i] + x); return value * value; },
              [&](int i, Wide value) { store_wide(at + (kRows + i) * pitch, value); });
    if constexpr (kinds > 2)
      blur_down(taps, [&](int i) { return load(a[i] + x) * load(b[i] + x); },
                [&](int i, Wide value) {
                  __builtin_prefetch(b[i + kRows] + x + ahead);
                  store_wide(at + (2 * kRows + i) * pitch, value);
                });
  };
  int x = 0;
  for (; x + kWide <= call.width; x += kWide) column(x, [](const float* p) { return load_wide(p); });
  const int rest = call.width - x;
  if (rest > 0) column(x, [rest](const float* p) { return load_wide(p, rest); });
}

void moments_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  const Strip strip = find_strip(call, task);
  const Memory memory(call, 1 + 2 * kRows, 0);
  if (memory.data == nullptr) return;
  const float* zeros = memory.data;
  float* down = memory.data + call.pitch;
  const Taps taps(call);
  for (int top = strip.first; top < strip.last; top += kRows) {
    const float* in[2 * kRows];
    find_rows(call.target + strip.channel, call, top - kRadius, zeros, in);
    blur_moments_down<2>(call, taps, in, nullptr, down);
    for (int i = 0; i < smaller(kRows, strip.last - top); ++i)
      for (int kind = 0; kind < 2; ++kind) {
        const float* row = down + (kind * kRows + i) * call.pitch + kMargin;
        float* out = (kind == 0 ? call.out_mean : call.out_square) + strip.channel +
                     static_cast<size_t>(top + i) * call.width;
        int x = 0;
        for (; x + kWide <= call.width; x += kWide) store_wide(out + x, blur_across(taps, row + x));
        if (x < call.width) store_wide(out + x, blur_across(taps, row + x), call.width - x);
      }
  }
}

int32_t ssim_moments(const Runtime* runtime, const float* target, int32_t width, int32_t height, float* mean,
                     float* mean_square) {
  SsimCall call{};
  prepare_call(call, width, height);
  call.target = target, call.out_mean = mean, call.out_square = mean_square;
  bool out_of_memory = false;
  call.out_of_memory = &out_of_memory;
  runtime->parallel_for(3 * call.strips, moments_task, &call);
  return out_of_memory ? 1 : 0;
}

struct Totals {
  Wide l1, ssim;  // times the weight; the SSIM twice
};

// One row of SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sxx + syy + C2)), Wang et al. 2004, x the render.
// `down` is E[x] blurred down, E[x^2] and E[xy] lie ten rows further each. The derivatives by the three, that by E[x^2]
// times -2, all times the weight, go to `by`, one row apart.
void compare_row(const SsimCall& call, const Taps& taps, const float* down, size_t at, size_t row, float* by,
                 Totals& totals) {
  const size_t pitch = call.pitch;
  const Wide c1 = wide(1e-4f), c2 = wide(9e-4f), ones = wide(1.0f);
  Totals sums = totals;
  const auto column = [&](int x, const auto& load, Wide weight) __attribute__((always_inline)) {
    const Wide mx = blur_across(taps, down + x);
    const Wide mxx = blur_across(taps, down + kRows * pitch + x);
    const Wide mxy = blur_across(taps, down + 2 * kRows * pitch + x);
    const Wide my = load(call.mean + at + x), myy = load(call.mean_square + at + x);
    if (call.weight != nullptr) weight = load(call.weight + row + x);
    const Wide both = mx * my, squares = mx * mx + my * my, covariance = mxy - both;
    const Wide a1 = (both + both) + c1, a2 = (covariance + covariance) + c2;
    const Wide b1 = squares + c1, b2 = (mxx + myy) - squares + c2;
    const Wide inverse = ones / (b1 * b2);
    const Wide scaled = (weight + weight) * inverse;
    const Wide by_product = scaled * a1;
    const Wide value = by_product * a2;
    const Wide ratio = value * inverse;
    sums.ssim += value;
    sums.l1 += weight * magnitude(load(call.render + at + x) - load(call.target + at + x));
    store_wide(by + x, my * (scaled * (a2 - a1)) - mx * (ratio * (b2 - b1)));
    store_wide(by + pitch + x, ratio * b1);
    store_wide(by + 2 * pitch + x, by_product);
  };
  int x = 0;
  for (; x + kWide <= call.width; x += kWide) column(x, [](const float* p) { return load_wide(p); }, ones);
  const int rest = call.width - x;
  if (rest > 0) {
    alignas(64) float first_ones[kWide];
    for (int lane = 0; lane < kWide; ++lane) first_ones[lane] = lane < rest ? 1.0f : 0.0f;
    column(x, [rest](const float* p) { return load_wide(p, rest); }, load_wide(first_ones));
  }
  totals = sums;
}

// Twenty rows, in two halves, of the three derivatives blurred across, in groups of 16 columns: what is blurred down
// together lies together.
struct Ring {
  static constexpr int kKind = 2 * kRows * 16, kGroup = 3 * kKind;
  float* data;
  float* at(int kind, int half, int x) const {
    return data + static_cast<size_t>(x / 16) * kGroup + kind * kKind + half * kRows * 16 + x % 16;
  }
  static size_t floats(const SsimCall& call) { return static_cast<size_t>(call.width + 15) / 16 * kGroup; }
};

// Ten rows of the images, or as many as there are: `zeros` and null after these.
struct ImageRows {
  const float *render[kRows], *target[kRows], *weight[kRows];
  float* gradient[kRows];
  ImageRows(const SsimCall& call, size_t channel, int y, int count, const float* zeros) {
    for (int i = 0; i < kRows; ++i) {
      const size_t row = static_cast<size_t>(y + i) * call.width;
      render[i] = i < count ? call.render + channel + row : zeros;
      target[i] = i < count ? call.target + channel + row : zeros;
      weight[i] = i < count && call.weight != nullptr ? call.weight + row : zeros;
      gradient[i] = i < count ? call.gradient + channel + row : nullptr;
    }
  }
};

void gradient_rows(const SsimCall& call, const Taps& taps, const Ring& ring, int half, const ImageRows& rows) {
  const float scale = 1.0f / (3.0f * call.width * call.height);
  const Wide l1_scale = wide((1.0f - call.share) * scale), ssim_scale = wide(-call.share * scale);
  const auto column = [&](int x, const auto& load, const auto& store) __attribute__((always_inline)) {
    Wide total[kRows];
    const float *upper, *lower;
    const auto read = [&](int i) { return load_wide(i < kRows ? upper + i * 16 : lower + (i - kRows) * 16); };
    upper = ring.at(0, half, x), lower = ring.at(0, half ^ 1, x);
    blur_down(taps, read, [&](int i, Wide value) { total[i] = value; });
    upper = ring.at(1, half, x), lower = ring.at(1, half ^ 1, x);
    blur_down(taps, read, [&](int i, Wide value) { total[i] -= load(rows.render[i] + x) * value; });
    upper = ring.at(2, half, x), lower = ring.at(2, half ^ 1, x);
    blur_down(taps, read, [&](int i, Wide value) {
      const Wide truth = load(rows.target[i] + x);
      Wide slope = l1_scale * sign(load(rows.render[i] + x) - truth);
      if (call.weight != nullptr) slope *= load(rows.weight[i] + x);
      if (rows.gradient[i] != nullptr)
        store(rows.gradient[i] + x, slope + ssim_scale * (total[i] + truth * value));
    });
  };
  int x = 0;
  for (; x + kWide <= call.width; x += kWide)
    column(x, [](const float* p) { return load_wide(p); }, [](float* p, Wide value) { store_wide(p, value); });
  const int rest = call.width - x;
  if (rest > 0)
    column(x, [rest](const float* p) { return load_wide(p, rest); },
           [rest](float* p, Wide value) { store_wide(p, value, rest); });
}

void l1_ssim_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  const Strip strip = find_strip(call, task);
  const bool wanted = call.gradient != nullptr;
  const int buffered = 1 + 3 * kRows + 3;
  const Memory memory(call, buffered, wanted ? Ring::floats(call) : 0);
  if (memory.data == nullptr) return;
  const float* zeros = memory.data;
  float* down = memory.data + call.pitch;
  float* by = down + 3 * kRows * call.pitch + kMargin;
  const Ring ring{memory.data + buffered * call.pitch};
  const Taps taps(call);
  double total_l1 = 0.0, total_ssim = 0.0;
  const int reach = wanted ? kRadius : 0;  // rows of derivatives beyond those of the strip
  int half = 0;                            // of the ring, to be filled next
  for (int top = strip.first - reach; top < strip.last + reach; top += kRows, half ^= 1) {
    const float *render[2 * kRows], *target[2 * kRows];
    find_rows(call.render + strip.channel, call, top - kRadius, zeros, render);
    find_rows(call.target + strip.channel, call, top - kRadius, zeros, target);
    blur_moments_down<3>(call, taps, render, target, down);
    Totals inside{}, outside{};
    for (int i = 0; i < kRows; ++i) {
      const int y = top + i;
      const bool exists = y >= 0 && y < smaller(call.height, strip.last + reach);
      if (exists) {
        const size_t row = static_cast<size_t>(y) * call.width;
        compare_row(call, taps, down + i * call.pitch + kMargin, strip.channel + row, row, by,
                    y >= strip.first && y < strip.last ? inside : outside);
      }
      if (wanted)
        for (int kind = 0; kind < 3; ++kind)
          for (int x = 0; x < call.width; x += kWide)
            store_wide(ring.at(kind, half, x) + i * 16,
                       exists ? blur_across(taps, by + kind * call.pitch + x) : wide(0.0f));
    }
    total_l1 += sum(inside.l1), total_ssim += 0.5 * sum(inside.ssim);
    const int y = top - kRadius;  // the ten rows whose windows end with these
    if (wanted && y >= strip.first)
      gradient_rows(call, taps, ring, half ^ 1, ImageRows(call, strip.channel, y, strip.last - y, zeros));
  }
  call.partial[2 * task] = total_l1;
  call.partial[2 * task + 1] = total_ssim;
}

int32_t l1_ssim(const Runtime* runtime, const float* render, const float* target, const float* mean,
                const float* mean_square, const float* weight, int32_t width, int32_t height, float ssim_share,
                double* loss, float* gradient) {
  SsimCall call{};
  prepare_call(call, width, height);
  call.render = render, call.target = target, call.mean = mean, call.mean_square = mean_square;
  call.weight = weight, call.share = ssim_share, call.gradient = gradient;
  const int tasks = 3 * call.strips;
  call.partial = static_cast<double*>(calloc(2 * tasks, sizeof(double)));
  if (call.partial == nullptr) return 1;
  bool out_of_memory = false;
  call.out_of_memory = &out_of_memory;
  runtime->parallel_for(tasks, l1_ssim_task, &call);
  loss[0] = loss[1] = 0.0;
  for (int task = 0; task < tasks; ++task) loss[0] += call.partial[2 * task], loss[1] += call.partial[2 * task + 1];
  const double pixels = 3.0 * width * height;
  loss[0] /= pixels, loss[1] /= pixels;
  free(call.partial);
  return out_of_memory ? 1 : 0;
}

}  // namespace
