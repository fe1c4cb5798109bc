// One step of Adam (Kingma and Ba 2015) on all fields of the splats, over the splats that a view showed.
#pragma once
#include "kernel.h"
#include "maths.h"
#include "vector.h"

namespace {

constexpr int kAdamChunk = 2048;  // splats

struct AdamCall {
  const AdamField* fields;
  int32_t field_count, count;
  const float* touched;
  AdamRule rule;
};

// `floats` numbers from `from`, a multiple of the field's width.
void adam_run(const AdamField& field, const AdamRule& rule, size_t from, size_t floats) {
  // The rates of a row, repeated so that sixteen may be read from any column.
  float rates[kAdamMostWidth + 16];
  for (int k = 0; k < field.width + 16; ++k)
    rates[k] = k % field.width < field.first_width ? field.first_rate : field.rest_rate;
  const Lanes beta_1 = set(rule.beta_1), beta_2 = set(rule.beta_2), epsilon = set(rule.epsilon);
  const Lanes new_1 = set(1.0f - rule.beta_1), new_2 = set(1.0f - rule.beta_2), unbias = set(rule.unbias_root);
  alignas(64) float tail[4][16] = {{0}};
  int column = 0;
  for (size_t at = 0; at < floats; at += 16) {
    const size_t i = from + at, left = floats - at;
    float *value = field.value + i, *mean = field.mean + i, *square = field.square + i;
    const float* gradient = field.gradient + i;
    if (left < 16) {
      memcpy(tail[0], value, left * sizeof(float)), memcpy(tail[1], mean, left * sizeof(float));
      memcpy(tail[2], square, left * sizeof(float)), memcpy(tail[3], gradient, left * sizeof(float));
      value = tail[0], mean = tail[1], square = tail[2], gradient = tail[3];
    }
    const Lanes g = load_unaligned(gradient);
    const Lanes m = mul_add(beta_1, load_unaligned(mean), new_1 * g);
    const Lanes v = mul_add(beta_2, load_unaligned(square), new_2 * g * g);
    const Lanes step = load_unaligned(rates + column) * m / mul_add(square_root(v), unbias, epsilon);
    store_unaligned(mean, m);
    store_unaligned(square, v);
    store_unaligned(value, load_unaligned(value) - step);
    if (left < 16) {
      memcpy(field.value + i, tail[0], left * sizeof(float)), memcpy(field.mean + i, tail[1], left * sizeof(float));
      memcpy(field.square + i, tail[2], left * sizeof(float));
    }
    column = (column + 16) % field.width;
  }
}

void adam_task(void* argument, int32_t chunk) {
  const AdamCall& call = *static_cast<AdamCall*>(argument);
  const int first = chunk * kAdamChunk, last = smaller(first + kAdamChunk, call.count);
  for (int start = first; start < last;) {
    if (call.touched != nullptr && call.touched[start] == 0.0f) {
      ++start;
      continue;
    }
    int end = start + 1;
    while (end < last && (call.touched == nullptr || call.touched[end] != 0.0f)) ++end;
    for (int f = 0; f < call.field_count; ++f) {
      const size_t width = static_cast<size_t>(call.fields[f].width);
      adam_run(call.fields[f], call.rule, width * start, width * (end - start));
    }
    start = end;
  }
}

int32_t adam_step(const Runtime* runtime, const AdamField* fields, int32_t field_count, int32_t count,
                  const float* touched, const AdamRule* rule) {
  for (int f = 0; f < field_count; ++f)
    if (fields[f].width < 1 || fields[f].width > kAdamMostWidth) return 3;
  AdamCall call{fields, field_count, count, touched, *rule};
  runtime->parallel_for((count + kAdamChunk - 1) / kAdamChunk, adam_task, &call);
  return 0;
}

}  // namespace
