// Chooses the instruction set at load time, owns the threads, and exports the C functions ctypes calls.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "kernel.h"

extern "C" const KernelTable* splatad_kernel_base();
#ifndef SPLATAD_ONLY_BASE
extern "C" const KernelTable* splatad_kernel_v3();
extern "C" const KernelTable* splatad_kernel_v4();
#endif

namespace {

#if defined(__x86_64__) || defined(_M_X64)
inline void relax() { __builtin_ia32_pause(); }
#else
inline void relax() { std::this_thread::yield(); }
#endif

// Workers join a job if they are awake in time; the caller works too and never waits for a worker that has not
// started. So a neighbour that holds the second core costs nothing beyond the missing help.
class Pool {
 public:
  using Clock = std::chrono::steady_clock;
  void run(int32_t count, TaskFunction function, void* argument) {
    std::unique_lock<std::mutex> busy(caller_, std::try_to_lock);
    if (!busy.owns_lock() || threads() <= 1 || count <= 1) {
      for (int32_t i = 0; i < count; ++i) function(argument, i);
      return;
    }
    if (alone_ > 0) {
      --alone_;
      for (int32_t i = 0; i < count; ++i) function(argument, i);
      return;
    }
    ensure_workers(threads() - 1);
    const auto begun = Clock::now();
    Job job{function, argument, count, {0}, {0}};
    bool sleepers;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      generation_.fetch_add(1, std::memory_order_release);
      sleepers = sleeping_ > 0;
    }
    if (sleepers) wake_.notify_all();
    work(job);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;
    }
    const auto finished = Clock::now();
    while (job.users.load(std::memory_order_acquire) != 0) relax();
    note_wait(finished - begun, Clock::now() - finished);
  }

  int32_t threads() const { return threads_.load(std::memory_order_relaxed); }
  void set_threads(int32_t count) { threads_.store(count < 1 ? 1 : count, std::memory_order_relaxed); }

 private:
  struct Job {
    TaskFunction function;
    void* argument;
    int32_t count;
    std::atomic<int32_t> next;
    std::atomic<int32_t> users;
  };

  // A worker that lost its core in the middle of a task keeps the caller waiting for a time slice. Where the wait is
  // longer than the caller's own work, the caller does the next jobs alone, and more of them each time it happens
  // again: beside a busy neighbour two threads are then about as fast as one, not slower.
  void note_wait(Clock::duration work, Clock::duration wait) {
    constexpr int32_t kFirst = 64, kMost = 2048;
    if (wait > std::chrono::milliseconds(1) && wait > work) {
      penalty_ = penalty_ == 0 ? kFirst : (penalty_ < kMost ? 2 * penalty_ : kMost);
      alone_ = penalty_;
      good_ = 0;
    } else if (penalty_ > 0 && ++good_ >= 4 * kFirst) {
      penalty_ /= 2;
      good_ = 0;
    }
  }

  static void work(Job& job) {
    for (int32_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.function(job.argument, i);
  }

  void ensure_workers(int32_t wanted) {
    try {
      while (static_cast<int32_t>(workers_) < wanted) {
        const int32_t rank = static_cast<int32_t>(workers_) + 1;
        std::thread([this, rank] { serve(rank); }).detach();
        ++workers_;
      }
    } catch (const std::system_error&) {
      // The system grants no more threads: the caller finishes alone, with the same result.
    }
  }

  void serve(int32_t rank) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < 4000 && generation_.load(std::memory_order_acquire) == seen; ++spin) relax();
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (generation_.load(std::memory_order_relaxed) == seen) {
          ++sleeping_;
          wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
          --sleeping_;
        }
        seen = generation_.load(std::memory_order_relaxed);
        if (job_ != nullptr && rank < threads()) {
          job = job_;
          job->users.fetch_add(1, std::memory_order_relaxed);
        }
      }
      if (job != nullptr) {
        work(*job);
        job->users.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  std::mutex caller_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int32_t> threads_{1};
  Job* job_ = nullptr;
  int32_t alone_ = 0;    // jobs to be done without workers
  int32_t penalty_ = 0;  // how many the last long wait cost
  int32_t good_ = 0;     // jobs since then without one
  int32_t sleeping_ = 0;
  uint32_t workers_ = 0;
};

alignas(Pool) unsigned char pool_storage[sizeof(Pool)];
Pool* pool() { return reinterpret_cast<Pool*>(pool_storage); }

int32_t default_threads() {
  const char* wanted = std::getenv("SPLATAD_THREADS");
  if (wanted != nullptr && std::atoi(wanted) > 0) return std::atoi(wanted);
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int32_t>(cores);
}

// Built in place and never destroyed: detached workers outlive static destruction. A forked child has no workers,
// so it gets a fresh pool.
void reset_pool() {
  const int32_t threads = pool()->threads();
  new (pool_storage) Pool();
  pool()->set_threads(threads);
}

const KernelTable* table = nullptr;

const KernelTable* best_table() {
#ifdef SPLATAD_ONLY_BASE
  return splatad_kernel_base();
#else
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    return splatad_kernel_v4();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    return splatad_kernel_v3();
  return splatad_kernel_base();
#endif
}

void run_parallel(int32_t count, TaskFunction function, void* argument) { pool()->run(count, function, argument); }

const Runtime runtime{run_parallel};

struct Startup {
  Startup() {
    new (pool_storage) Pool();
    pool()->set_threads(default_threads());
    pthread_atfork(nullptr, nullptr, reset_pool);
    table = best_table();
  }
} startup;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t splatad_abi_version() { return 6; }
EXPORT const char* splatad_isa() { return table->name; }
EXPORT int32_t splatad_threads() { return pool()->threads(); }
EXPORT void splatad_set_threads(int32_t count) { pool()->set_threads(count); }

// 0 where the named instruction set ("base", "v3", "v4") is now in use, 1 where this processor or build lacks it.
// Contexts made before belong to the table they were made with: call this only while none is alive.
EXPORT int32_t splatad_choose_isa(const char* name) {
  const KernelTable* best = best_table();
  const KernelTable* chosen = nullptr;
  if (std::strcmp(name, "base") == 0) chosen = splatad_kernel_base();
#ifndef SPLATAD_ONLY_BASE
  if (std::strcmp(name, "v3") == 0 && best != splatad_kernel_base()) chosen = splatad_kernel_v3();
  if (std::strcmp(name, "v4") == 0 && best == splatad_kernel_v4()) chosen = splatad_kernel_v4();
#endif
  if (std::strcmp(name, "auto") == 0) chosen = best;
  if (chosen == nullptr) return 1;
  table = chosen;
  return 0;
}

EXPORT Context* splatad_create() { return table->create(); }
EXPORT void splatad_destroy(Context* context) { table->destroy(context); }

EXPORT int32_t splatad_forward(Context* context, const SplatInput* splats, const CameraInput* camera,
                               const float* background, float* rgb, float* alpha, float* depth) {
  return table->forward(context, &runtime, splats, camera, background, rgb, alpha, depth);
}
EXPORT int32_t splatad_composite_extra(Context* context, const CameraInput* camera, const float* extra,
                                       int32_t extra_width, const float* background, float* out) {
  return table->composite_extra(context, &runtime, camera, extra, extra_width, background, out);
}
EXPORT int32_t splatad_backward(Context* context, const SplatInput* splats, const CameraInput* camera,
                                const float* background, const float* rgb, const float* alpha, const float* depth,
                                const float* v_rgb, const float* v_alpha, const float* v_depth,
                                const SplatGradients* gradients) {
  return table->backward(context, &runtime, splats, camera, background, rgb, alpha, depth, v_rgb, v_alpha, v_depth,
                         gradients);
}
EXPORT int32_t splatad_pose_step(Context* context, const SplatInput* splats, const CameraInput* camera,
                                 const float* background, const float* rgb, const float* alpha, const float* target,
                                 const float* pixel_weight, PoseStep* step, float* jacobian) {
  return table->pose_step(context, &runtime, splats, camera, background, rgb, alpha, target, pixel_weight, step,
                          jacobian);
}
EXPORT int32_t splatad_ssim_moments(const float* target, int32_t width, int32_t height, float* mean,
                                    float* mean_square) {
  return table->ssim_moments(&runtime, target, width, height, mean, mean_square);
}
EXPORT int32_t splatad_l1_ssim(const float* render, const float* target, const float* mean, const float* mean_square,
                               const float* weight, int32_t width, int32_t height, float ssim_share, double* loss,
                               float* gradient) {
  return table->l1_ssim(&runtime, render, target, mean, mean_square, weight, width, height, ssim_share, loss, gradient);
}
EXPORT int32_t splatad_adam_step(const AdamField* fields, int32_t field_count, int32_t count, const float* touched,
                                 const AdamRule* rule) {
  return table->adam_step(&runtime, fields, field_count, count, touched, rule);
}
EXPORT void splatad_statistics(const Context* context, ViewStatistics* out) { table->statistics(context, out); }
EXPORT double splatad_peak_multiply_adds() { return table->peak_multiply_adds(); }
