// The C interface of the CPU kernel: plain pointers, no torch, no Python.
//
// Conventions as in docs/conventions.md: OpenCV camera, world-to-camera, pixel centres at +0.5, wxyz quaternions,
// images planar (channel, row, column), float32. `kernel_isa.cpp` is compiled once per instruction set; each gives
// one KernelTable and `dispatch.cpp` picks one at load time.
#pragma once
#include <cstddef>
#include <cstdint>

struct SplatInput {
  const float* means;            // n x 3
  const float* quats;            // n x 4, wxyz, any length > 0
  const float* log_scales;       // n x 3
  const float* logit_opacities;  // n
  const float* sh;               // n x sh_stride x 3, or null when `colours` is given
  const float* colours;          // n x 3 used as they stand, or null
  int32_t count;
  int32_t sh_stride;  // coefficients stored per splat
  int32_t sh_degree;  // degree used, 0 to 3
};

struct CameraInput {
  float world_to_cam[12];  // rows of [R | t]
  float fl_x, fl_y, cx, cy;
  int32_t width, height;
  float near_plane;   // splats nearer than this are not drawn
  float blur;         // added to the diagonal of the projected covariance, px^2
  int32_t antialiased;  // 1: opacity times sqrt(det before blur / det after)
};

struct SplatGradients {  // each may be null: then it is not written
  float* means;
  float* quats;
  float* log_scales;
  float* logit_opacities;
  float* sh;
  float* colours;
  float* world_to_cam;  // 12, rows of [R | t]
  float* means2d;       // n x 2, px: what densification looks at
  float* weights;       // n: not a gradient but the sum over the pixels of the compositing weight
};

constexpr int kPoseMost = 7;  // unknowns of a camera

struct PoseStep {            // input and output of one Gauss-Newton pass
  float pivot[3];            // rotation is about this point, camera coordinates
  float gain[3], bias[3];    // residual = gain * render + bias, cut to 0..1, less the target
  float huber;               // residual norm (over rgb) where the weight starts to fall; <= 0: plain least squares
  float geman;               // scale of a Geman-McClure weight; <= 0: none
  int32_t unknowns;          // 6: rotation vector about the pivot, then translation; 7: and the log of the focal length
  int32_t keep;              // 1: remember the Jacobian in the context for later passes
  int32_t reuse;             // 1: take the Jacobian remembered there instead of computing it anew (same image size)
  double hessian[49];        // sum of w J^T J, unknowns x unknowns
  double gradient[7];        // sum of w J^T r
  double cost;               // sum of robust losses (half squared residual where the weight is 1)
  double weight;             // sum of w over the pixels
  double squared;            // sum of squared residuals, unweighted
  // For gain and bias, which act on the part alone (c: render without background, a: its alpha, t: target without the
  // background that shows through), over pixels that are not cut to 0..1. Per channel: sum w a a, w a c, w c c, w a t,
  // w c t, w t t.
  double moments[18];
  double cross[42];          // per channel and unknown: sum of w J c, w J a
};

constexpr int kAdamMostWidth = 64;

struct AdamField {        // one parameter of all splats, row by row
  float* value;
  const float* gradient;
  float* mean;            // running mean of the gradient
  float* square;          // and of its square
  int32_t width;          // floats in a row, at most kAdamMostWidth
  int32_t first_width;    // columns with a rate of their own
  float first_rate, rest_rate;  // learning rates, divided by the bias correction of the mean
};

struct AdamRule {
  float beta_1, beta_2, epsilon;
  float unbias_root;  // 1 / sqrt of the bias correction of the square
};

struct ViewStatistics {
  int64_t drawn;             // splats
  int64_t pairs;             // of splat and tile
  int64_t block_operations;  // splat-tile-block triples: sixteen pixels each
  double stage_ms[6];  // of the last forward: project, sort, bin, composite; of the last backward: composite, project
};

struct Context;  // one view between forward and backward; buffers are reused through the pool

using TaskFunction = void (*)(void* argument, int32_t index);

struct Runtime {  // what the instruction-set files need from the one non-specific file
  void (*parallel_for)(int32_t count, TaskFunction function, void* argument);
};

struct KernelTable {
  const char* name;
  Context* (*create)();
  void (*destroy)(Context*);
  // Returns 0, or 1 where memory ran out. `depth` may be null.
  int32_t (*forward)(Context*, const Runtime*, const SplatInput*, const CameraInput*, const float* background,
                     float* rgb, float* alpha, float* depth);
  // After forward on the same context, with the same camera: `extra` (count x extra_width, by splat) composited like
  // colours over `background` (extra_width) into `out` (extra_width x height x width).
  int32_t (*composite_extra)(Context*, const Runtime*, const CameraInput*, const float* extra, int32_t extra_width,
                             const float* background, float* out);
  // Gradients of the loss by the outputs of the last forward on this context; v_alpha and v_depth may be null.
  int32_t (*backward)(Context*, const Runtime*, const SplatInput*, const CameraInput*, const float* background,
                      const float* rgb, const float* alpha, const float* depth, const float* v_rgb,
                      const float* v_alpha, const float* v_depth, const SplatGradients*);
  // After forward on the same context: the normal equations of the photometric residual. `pixel_weight` may be null;
  // `jacobian` (3 x unknowns x height x width: d render / d unknown) is written where not null. Returns 4 for a number of
  // unknowns there is not, or a Jacobian to reuse that was not kept for this image size.
  int32_t (*pose_step)(Context*, const Runtime*, const SplatInput*, const CameraInput*, const float* background,
                       const float* rgb, const float* alpha, const float* target, const float* pixel_weight,
                       PoseStep*, float* jacobian);
  // Moments of the target for l1_ssim: mean and mean square under the SSIM window, each 3 x height x width.
  int32_t (*ssim_moments)(const Runtime*, const float* target, int32_t width, int32_t height, float* mean,
                          float* mean_square);
  // loss[0] = mean weighted |render - target|, loss[1] = mean weighted SSIM; gradient (may be null) of
  // (1 - ssim_share) * loss[0] + ssim_share * (1 - loss[1]).
  int32_t (*l1_ssim)(const Runtime*, const float* render, const float* target, const float* mean,
                     const float* mean_square, const float* weight, int32_t width, int32_t height, float ssim_share,
                     double* loss, float* gradient);
  // Rows whose `touched` is 0 stay as they are, moments too; null: all rows move. Returns 3 for a row too wide.
  int32_t (*adam_step)(const Runtime*, const AdamField* fields, int32_t field_count, int32_t count,
                       const float* touched, const AdamRule*);
  void (*statistics)(const Context*, ViewStatistics*);
  double (*peak_multiply_adds)();  // of 16 lanes, a second, on the calling core
};
