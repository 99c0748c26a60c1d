// Large results on the CPU in large pages.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "stable.h"

namespace segdet {

// Fresh memory costs a page fault per page when it is first written: for 100 MB in pages of 4 KB as
// long as pooling 512 regions into it takes. Asks for pages of 2 MB; systems that give these
// anyway, or never, are not changed. Call it before anything is written.
inline void prefer_huge_pages(Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t bytes = uintptr_t(tensor.numel() * tensor.element_size());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace segdet
