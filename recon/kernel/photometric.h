// L1 and SSIM of a render against a photo, and their gradient. Included once by kernel_isa.cpp.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "maths.h"
#include "vector.h"

namespace {

constexpr int kWindow = 11;
constexpr int kRadius = kWindow / 2;
constexpr int kRowChunk = 8;

struct SsimCall {
  const float *render, *target, *mean, *mean_square, *weight;
  float *scratch, *gradient, *out_mean, *out_square;
  double* partial;
  bool* out_of_memory;  // set by any task; never cleared
  int width, height;
  float share;
  float window[kWindow];  // Gaussian, sigma 1.5, sums to 1
};

void fill_window(float window[kWindow]) {
  double total = 0.0, value[kWindow];
  for (int k = 0; k < kWindow; ++k) total += value[k] = exp(-0.5 * (k - kRadius) * (k - kRadius) / 2.25);
  for (int k = 0; k < kWindow; ++k) window[k] = static_cast<float>(value[k] / total);
}

// out[x] = sum_k window[k] in[x + k - 5], zero outside. `padded` holds width + 10 floats.
void blur_row(const float* window, const float* padded, float* out, int width) {
  for (int x = 0; x < width; ++x) {
    float total = 0.0f;
    for (int k = 0; k < kWindow; ++k) total += window[k] * padded[x + k];
    out[x] = total;
  }
}

void blur_column(const float* window, const float* plane, int width, int height, int y, float* out) {
  const int low = larger(0, kRadius - y), high = smaller(kWindow - 1, height - 1 - y + kRadius);
  for (int x = 0; x < width; ++x) out[x] = 0.0f;
  for (int k = low; k <= high; ++k) {
    const float w = window[k];
    const float* in = plane + static_cast<size_t>(y + k - kRadius) * width;
    for (int x = 0; x < width; ++x) out[x] += w * in[x];
  }
}

struct RowBuffer {  // per task scratch, on the heap of the thread
  float* data;
  explicit RowBuffer(size_t floats) : data(static_cast<float*>(malloc(floats * sizeof(float)))) {}
  ~RowBuffer() { free(data); }
};

inline void row_range(const SsimCall& call, int32_t task, int& channel, int& first, int& last) {
  const int chunks = (call.height + kRowChunk - 1) / kRowChunk;
  channel = task / chunks;
  first = (task % chunks) * kRowChunk;
  last = smaller(first + kRowChunk, call.height);
}

void moments_rows_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  int channel, first, last;
  row_range(call, task, channel, first, last);
  const int width = call.width;
  const size_t plane = static_cast<size_t>(width) * call.height;
  RowBuffer buffer(2 * (width + 2 * kRadius));
  if (buffer.data == nullptr) {
    __atomic_store_n(call.out_of_memory, true, __ATOMIC_RELAXED);
    return;
  }
  float* one = buffer.data;
  float* two = one + width + 2 * kRadius;
  memset(buffer.data, 0, 2 * (width + 2 * kRadius) * sizeof(float));
  for (int y = first; y < last; ++y) {
    const size_t at = channel * plane + static_cast<size_t>(y) * width;
    for (int x = 0; x < width; ++x) {
      const float t = call.target[at + x];
      one[x + kRadius] = t;
      two[x + kRadius] = t * t;
    }
    blur_row(call.window, one, call.scratch + at, width);
    blur_row(call.window, two, call.scratch + 3 * plane + at, width);
  }
}

void moments_columns_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  int channel, first, last;
  row_range(call, task, channel, first, last);
  const size_t plane = static_cast<size_t>(call.width) * call.height;
  for (int y = first; y < last; ++y) {
    const size_t at = channel * plane + static_cast<size_t>(y) * call.width;
    blur_column(call.window, call.scratch + channel * plane, call.width, call.height, y, call.out_mean + at);
    blur_column(call.window, call.scratch + (3 + channel) * plane, call.width, call.height, y, call.out_square + at);
  }
}

int32_t ssim_moments(const Runtime* runtime, const float* target, int32_t width, int32_t height, float* mean,
                     float* mean_square) {
  SsimCall call{};
  call.target = target, call.width = width, call.height = height, call.out_mean = mean, call.out_square = mean_square;
  fill_window(call.window);
  call.scratch = static_cast<float*>(malloc(sizeof(float) * 6 * static_cast<size_t>(width) * height));
  if (call.scratch == nullptr) return 1;
  const int tasks = 3 * ((height + kRowChunk - 1) / kRowChunk);
  bool out_of_memory = false;
  call.out_of_memory = &out_of_memory;
  runtime->parallel_for(tasks, moments_rows_task, &call);
  runtime->parallel_for(tasks, moments_columns_task, &call);
  free(call.scratch);
  return out_of_memory ? 1 : 0;
}

// scratch planes: 0-2 blur of render, then of render^2, then of render * target; overwritten by the derivative maps'
// row blurs in planes 9-17.
void ssim_rows_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  int channel, first, last;
  row_range(call, task, channel, first, last);
  const int width = call.width, padded = width + 2 * kRadius;
  const size_t plane = static_cast<size_t>(width) * call.height;
  RowBuffer buffer(3 * padded);
  if (buffer.data == nullptr) {
    __atomic_store_n(call.out_of_memory, true, __ATOMIC_RELAXED);
    return;
  }
  memset(buffer.data, 0, 3 * padded * sizeof(float));
  for (int y = first; y < last; ++y) {
    const size_t at = channel * plane + static_cast<size_t>(y) * width;
    for (int x = 0; x < width; ++x) {
      const float c = call.render[at + x], t = call.target[at + x];
      buffer.data[x + kRadius] = c;
      buffer.data[padded + x + kRadius] = c * c;
      buffer.data[2 * padded + x + kRadius] = c * t;
    }
    for (int kind = 0; kind < 3; ++kind)
      blur_row(call.window, buffer.data + kind * padded, call.scratch + 3 * kind * plane + at, width);
  }
}

// SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sxx + syy + C2)), Wang et al. 2004, with x the render.
void ssim_columns_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  int channel, first, last;
  row_range(call, task, channel, first, last);
  const int width = call.width, padded = width + 2 * kRadius;
  const size_t plane = static_cast<size_t>(width) * call.height;
  RowBuffer buffer(3 * width + 3 * padded);
  if (buffer.data == nullptr) {
    __atomic_store_n(call.out_of_memory, true, __ATOMIC_RELAXED);
    return;
  }
  float* mx = buffer.data;
  float* mxx = mx + width;
  float* mxy = mxx + width;
  float* by_mean = mxy + width;
  float* by_square = by_mean + padded;
  float* by_product = by_square + padded;
  memset(by_mean, 0, 3 * padded * sizeof(float));
  constexpr float kC1 = 1e-4f, kC2 = 9e-4f;
  double total_l1 = 0.0, total_ssim = 0.0;
  for (int y = first; y < last; ++y) {
    const size_t row = static_cast<size_t>(y) * width, at = channel * plane + row;
    blur_column(call.window, call.scratch + channel * plane, width, call.height, y, mx);
    blur_column(call.window, call.scratch + (3 + channel) * plane, width, call.height, y, mxx);
    blur_column(call.window, call.scratch + (6 + channel) * plane, width, call.height, y, mxy);
    const float* my = call.mean + at;
    const float* myy = call.mean_square + at;
    float row_ssim = 0.0f, row_l1 = 0.0f;
    for (int x = 0; x < width; ++x) {
      const float weight = call.weight != nullptr ? call.weight[row + x] : 1.0f;
      const float sxx = mxx[x] - mx[x] * mx[x], syy = myy[x] - my[x] * my[x], sxy = mxy[x] - mx[x] * my[x];
      const float a1 = 2.0f * mx[x] * my[x] + kC1, a2 = 2.0f * sxy + kC2;
      const float b1 = mx[x] * mx[x] + my[x] * my[x] + kC1, b2 = sxx + syy + kC2;
      const float inverse = 1.0f / (b1 * b2);
      const float value = a1 * a2 * inverse;
      row_ssim += weight * value;
      row_l1 += weight * fabsf(call.render[at + x] - call.target[at + x]);
      // by the raw moments E[x], E[x^2], E[xy]
      const float by_sxx = -value / b2, by_sxy = 2.0f * a1 * inverse;
      by_mean[x + kRadius] = weight * (2.0f * my[x] * a2 * inverse - 2.0f * mx[x] * value / b1 -
                                       2.0f * mx[x] * by_sxx - my[x] * by_sxy);
      by_square[x + kRadius] = weight * by_sxx;
      by_product[x + kRadius] = weight * by_sxy;
    }
    total_ssim += row_ssim;
    total_l1 += row_l1;
    if (call.gradient != nullptr)
      for (int kind = 0; kind < 3; ++kind)
        blur_row(call.window, by_mean + kind * padded, call.scratch + (9 + 3 * kind) * plane + at, width);
  }
  call.partial[2 * task] = total_l1;
  call.partial[2 * task + 1] = total_ssim;
}

void ssim_gradient_task(void* argument, int32_t task) {
  const SsimCall& call = *static_cast<SsimCall*>(argument);
  int channel, first, last;
  row_range(call, task, channel, first, last);
  const int width = call.width;
  const size_t plane = static_cast<size_t>(width) * call.height;
  RowBuffer buffer(3 * width);
  if (buffer.data == nullptr) {
    __atomic_store_n(call.out_of_memory, true, __ATOMIC_RELAXED);
    return;
  }
  float* by_mean = buffer.data;
  float* by_square = by_mean + width;
  float* by_product = by_square + width;
  const float scale = 1.0f / (3.0f * plane);
  const float l1_scale = (1.0f - call.share) * scale, ssim_scale = -call.share * scale;
  for (int y = first; y < last; ++y) {
    const size_t row = static_cast<size_t>(y) * width, at = channel * plane + row;
    blur_column(call.window, call.scratch + (9 + channel) * plane, width, call.height, y, by_mean);
    blur_column(call.window, call.scratch + (12 + channel) * plane, width, call.height, y, by_square);
    blur_column(call.window, call.scratch + (15 + channel) * plane, width, call.height, y, by_product);
    for (int x = 0; x < width; ++x) {
      const float c = call.render[at + x], t = call.target[at + x];
      const float weight = call.weight != nullptr ? call.weight[row + x] : 1.0f;
      const float sign = c > t ? 1.0f : (c < t ? -1.0f : 0.0f);
      call.gradient[at + x] =
          l1_scale * weight * sign + ssim_scale * (by_mean[x] + 2.0f * c * by_square[x] + t * by_product[x]);
    }
  }
}

int32_t l1_ssim(const Runtime* runtime, const float* render, const float* target, const float* mean,
                const float* mean_square, const float* weight, int32_t width, int32_t height, float ssim_share,
                float* scratch, double* loss, float* gradient) {
  const int tasks = 3 * ((height + kRowChunk - 1) / kRowChunk);
  SsimCall call{};
  call.render = render, call.target = target, call.mean = mean, call.mean_square = mean_square;
  call.weight = weight, call.width = width, call.height = height, call.share = ssim_share;
  call.scratch = scratch, call.gradient = gradient;
  fill_window(call.window);
  call.partial = static_cast<double*>(malloc(sizeof(double) * 2 * tasks));
  if (call.partial == nullptr) return 1;
  bool out_of_memory = false;
  call.out_of_memory = &out_of_memory;
  runtime->parallel_for(tasks, ssim_rows_task, &call);
  runtime->parallel_for(tasks, ssim_columns_task, &call);
  if (gradient != nullptr) runtime->parallel_for(tasks, ssim_gradient_task, &call);
  loss[0] = loss[1] = 0.0;
  for (int task = 0; task < tasks; ++task) loss[0] += call.partial[2 * task], loss[1] += call.partial[2 * task + 1];
  const double pixels = 3.0 * width * height;
  loss[0] /= pixels, loss[1] /= pixels;
  free(call.partial);
  return out_of_memory ? 1 : 0;
}

}  // namespace
