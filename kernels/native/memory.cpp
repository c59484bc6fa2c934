// Memory for PyTorch's large CPU tensors that stays with the process and is used again.
//
// A training step allocates the same large tensors again and again. glibc either returns each of them to the kernel,
// which must then clear fresh pages at every step, or keeps them in one heap, where small blocks that live longer come
// to lie between them: the heap is cut into pieces that no longer fit, and grows at every step. Here each large block
// is a mapping of its own. A freed one waits for a tensor of about its size. What waits is returned to the kernel as
// soon as it would make the process larger than 1.1 times its largest need.
//
// PyTorch asks through c10::Allocator. Small blocks come from posix_memalign, as before.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

constexpr size_t kLarge = size_t{1} << 20;  // bytes of a large block, at least
constexpr size_t kImpossible = size_t{1} << 60;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAlignment = 64;  // of small blocks, as PyTorch has it

std::mutex mutex;
std::unordered_map<void*, size_t> sizes;  // of all large blocks
std::multimap<size_t, void*> waiting;     // freed blocks by size
size_t in_use = 0, kept = 0, most_in_use = 0;

// Sizes in steps of an eighth of a power of two: few sizes, and at most an eighth of a block is lost.
size_t rounded(size_t bytes) {
  size_t power = kLarge;
  while (power * 2 <= bytes) power *= 2;
  const size_t step = std::max<size_t>(power / 8, 4096);
  return (bytes + step - 1) / step * step;
}

void unmap(std::multimap<size_t, void*>::iterator block) {
  munmap(block->second, block->first);
  sizes.erase(block->second);
  kept -= block->first;
  waiting.erase(block);
}

void* allocate_large(size_t bytes) {
  if (bytes >= kImpossible) return nullptr;
  const size_t size = rounded(bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  // A block that waits may be a quarter larger.
  auto block = waiting.lower_bound(size);
  if (block != waiting.end() && block->first <= size + size / 4) {
    void* memory = block->second;
    kept -= block->first;
    in_use += block->first;
    waiting.erase(block);
    most_in_use = std::max(most_in_use, in_use);
    return memory;
  }
  // Largest first: few calls, and small blocks fit more tensors.
  const size_t most = std::max(most_in_use, in_use + size);
  while (!waiting.empty() && in_use + size + kept > most + most / 10) unmap(std::prev(waiting.end()));
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {  // perhaps there is room without what waits
    while (!waiting.empty()) unmap(waiting.begin());
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
  }
#ifdef MADV_HUGEPAGE
  if (size >= kHugePage) madvise(memory, size, MADV_HUGEPAGE);
#endif
  sizes[memory] = size;
  in_use += size;
  most_in_use = most;
  return memory;
}

void release(void* memory) {
  if (memory == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = sizes.find(memory);
    if (found != sizes.end()) {
      in_use -= found->second;
      kept += found->second;
      waiting.emplace(found->second, memory);
      return;
    }
  }
  free(memory);
}

struct KeepingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (bytes >= kLarge) {
      memory = allocate_large(bytes);
    } else if (bytes > 0 && posix_memalign(&memory, kAlignment, bytes) != 0) {
      memory = nullptr;
    }
    // The text is PyTorch's own, which callers recognise.
    TORCH_CHECK(
        memory != nullptr || bytes == 0,
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes, " bytes.");
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

KeepingAllocator allocator;

}  // namespace

// Let PyTorch allocate CPU tensors here from now on. Tensors that exist keep their memory and its deleter.
extern "C" void keep_tensor_memory() { c10::SetCPUAllocator(&allocator, 255); }

// Bytes of large blocks: in use, waiting, and most in use so far.
extern "C" void tensor_memory(size_t* result) {
  const std::lock_guard<std::mutex> lock(mutex);
  result[0] = in_use;
  result[1] = kept;
  result[2] = most_in_use;
}
