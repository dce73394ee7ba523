// Host checks. Every failed check names the op and the argument, what was expected and what came.
// Callers see them as RuntimeError; messages that start with kUnsupported become NotImplementedError in interface.py.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace flash_dsa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kUnsupported = "unsupported here: ";

// Kernels load 16 bytes at a time.
constexpr int64_t kAlignment = 16;

// Kernels count heads, index slots, rows of packed sequences and sequences in 32 bits. The bit left over is the room
// they need to round up to whole tiles and to add two.
constexpr int64_t kMaxSize = int64_t{1} << 30;

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream message;
  (message << ... << args);
  throw std::runtime_error(message.str());
}

inline std::string list_of(const std::vector<int64_t>& numbers) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "") << numbers[i];
  text << "]";
  return text.str();
}

inline std::string shape_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) sizes.push_back(tensor.size(dim));
  return list_of(sizes);
}

inline std::string strides_of(const Tensor& tensor) {
  std::vector<int64_t> strides;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) strides.push_back(tensor.stride(dim));
  return list_of(strides);
}

// Addresses from the first byte of a tensor to the one past its last; empty where it has no element.
struct Span {
  uintptr_t begin, end;
};

inline Span span_of(const Tensor& tensor) {
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return {begin, begin};
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) last += (tensor.size(dim) - 1) * tensor.stride(dim);
  return {begin, begin + static_cast<uintptr_t>(last + 1) * static_cast<uintptr_t>(tensor.element_size())};
}

inline std::string device_of(const Tensor& tensor) {
  return tensor.is_cpu() ? "cpu" : "cuda:" + std::to_string(tensor.get_device_index());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

// The checks of one op, so that every message starts with its name.
struct Checker {
  const char* op;

  void rank(const char* name, const Tensor& tensor, const char* shape, int64_t dims) const {
    if (tensor.dim() != dims) fail(op, ": `", name, "` expected shape ", shape, ", got ", shape_of(tensor));
  }

  void size(const char* name, const Tensor& tensor, int64_t dim, int64_t expected, const char* meaning) const {
    if (tensor.size(dim) != expected) {
      fail(op, ": `", name, "` expected ", meaning, " = ", expected, " in dimension ", dim, ", got shape ",
           shape_of(tensor));
    }
  }

  void at_most_max_size(const char* name, const Tensor& tensor, int64_t dim, const char* meaning) const {
    if (tensor.size(dim) > kMaxSize) {
      fail(op, ": `", name, "` expected ", meaning, " <= ", kMaxSize, " in dimension ", dim, ", got shape ",
           shape_of(tensor));
    }
  }

  void shape(const char* name, const Tensor& tensor, const char* meaning, const std::vector<int64_t>& sizes) const {
    rank(name, tensor, meaning, static_cast<int64_t>(sizes.size()));
    for (size_t dim = 0; dim < sizes.size(); ++dim) {
      if (tensor.size(static_cast<int64_t>(dim)) != sizes[dim]) {
        fail(op, ": `", name, "` expected shape ", meaning, " = ", list_of(sizes), ", got ", shape_of(tensor));
      }
    }
  }

  void dtype(const char* name, const Tensor& tensor, ScalarType expected) const {
    if (tensor.scalar_type() != expected) {
      fail(op, ": `", name, "` expected dtype ", dtype_name(expected), ", got ", dtype_name(tensor.scalar_type()));
    }
  }

  void device(const char* name, const Tensor& tensor, const Tensor& q) const {
    if (tensor.device() != q.device()) {
      fail(op, ": `", name, "` expected on the device of `q`, ", device_of(q), ", got ", device_of(tensor));
    }
  }

  // Last dimension contiguous, the others at any stride that keeps rows on 16 bytes.
  void rows_aligned(const char* name, const Tensor& tensor) const {
    const int64_t element = static_cast<int64_t>(tensor.element_size());
    const int64_t last = tensor.dim() - 1;
    if (tensor.numel() == 0) return;
    if (tensor.size(last) > 1 && tensor.stride(last) != 1) {
      fail(op, ": `", name, "` expected stride 1 in its last dimension, got ", tensor.stride(last));
    }
    for (int64_t dim = 0; dim < last; ++dim) {
      if (tensor.size(dim) > 1 && tensor.stride(dim) * element % kAlignment != 0) {
        fail(op, ": `", name, "` expected strides that are multiples of ", kAlignment / element, " elements (",
             kAlignment, " bytes), got stride ", tensor.stride(dim), " in dimension ", dim);
      }
    }
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    if (address % kAlignment != 0) {
      fail(op, ": `", name, "` expected data aligned to ", kAlignment, " bytes, got an address ", address % kAlignment,
           " bytes past");
    }
  }

  // No two elements share memory: from the smallest stride up, every dimension steps over all that those before it
  // span. Rows that interleave without touching are refused with the rest.
  void writable(const char* name, const Tensor& tensor) const {
    if (tensor.numel() == 0) return;
    std::vector<std::pair<int64_t, int64_t>> steps;  // stride, size
    for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
      if (tensor.size(dim) > 1) steps.emplace_back(tensor.stride(dim), tensor.size(dim));
    }
    std::sort(steps.begin(), steps.end());
    int64_t spanned = 1;
    for (const auto& [stride, size] : steps) {
      if (stride < spanned) {
        fail(op, ": `", name, "` expected memory of its own for every element, got shape ", shape_of(tensor),
             " with strides ", strides_of(tensor));
      }
      spanned += (size - 1) * stride;
    }
  }

  // Kernels read the others while they write this one. Spans are compared, so a view between the rows of another tensor
  // is refused as well. An argument that was not given is null.
  void apart(const char* name, const Tensor& written,
             std::initializer_list<std::pair<const char*, const Tensor*>> others) const {
    const Span mine = span_of(written);
    for (const auto& [other_name, other] : others) {
      if (other == nullptr) continue;
      const Span theirs = span_of(*other);
      const uintptr_t begin = std::max(mine.begin, theirs.begin), end = std::min(mine.end, theirs.end);
      if (begin < end) {
        fail(op, ": `", name, "` expected memory outside the span of `", other_name, "`, got ", end - begin,
             " bytes within it");
      }
    }
  }

  void contiguous(const char* name, const Tensor& tensor) const {
    if (!tensor.is_contiguous()) fail(op, ": `", name, "` expected a contiguous tensor, got one with strides");
  }

  void scale(const char* name, double value) const {
    if (!(value > 0.0) || !std::isfinite(static_cast<float>(value)) || static_cast<float>(value) == 0.0f) {
      fail(op, ": `", name, "` expected a finite number > 0, got ", value);
    }
  }

  // The kernels' element type: bfloat16 everywhere, float32 on the cpu target as well.
  void attention_dtype(const char* name, const Tensor& tensor) const {
    const ScalarType dtype = tensor.scalar_type();
    const bool on_cpu = tensor.is_cpu();
    if (dtype == ScalarType::BFloat16 || (on_cpu && dtype == ScalarType::Float)) return;
    fail(op, ": `", name, "` expected dtype ", on_cpu ? "bfloat16 or float32" : "bfloat16", ", got ",
         dtype_name(dtype));
  }
};

}  // namespace flash_dsa
