// Gradients of improbable tokens fall below the smallest normal number, where each operation costs a hundred cycles.
// While a Flush lives, its thread takes them for 0.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace policy_split {

class Flush {
 public:
#if defined(__SSE__)
  Flush() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }  // flush results, and operands, to 0
  ~Flush() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  Flush() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | (uint64_t(1) << 24)));
  }
  ~Flush() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#else
  Flush() {}
#endif
};

}  // namespace policy_split
