// A device that plugs into LibTorch as NPUs do (PrivateUse1), made of main memory; there are four of it. It has no communicator of its
// own. What goes to a stream is done at once, and the order in which streams are made to wait is written down. With it, everything
// that is written for "some device" runs where there is no accelerator.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace plug_in {

inline constexpr at::DeviceType type = at::kPrivateUse1;
inline constexpr at::DeviceIndex devices = 4;

inline at::DeviceIndex& current() {
    static thread_local at::DeviceIndex index = 0;
    return index;
}

/// The calling thread's stream; 0 is the default one.
inline int64_t& stream() {
    static thread_local int64_t id = 0;
    return id;
}

/// What the calling thread has done with events: "record S", "block S".
inline std::vector<std::string>& order() {
    static thread_local std::vector<std::string> log;
    return log;
}

struct Memory final : at::Allocator {
    at::DataPtr allocate(size_t bytes) override {
        auto* const data = bytes == 0 ? nullptr : std::malloc(bytes);
        return {data, data, &std::free, at::Device(type, current())};
    }
    at::DeleterFnPtr raw_deleter() const override { return &std::free; }
    void copy_data(void* to, void const* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
    at::DeviceType type() const override { return plug_in::type; }
    at::Device exchangeDevice(at::Device d) const override {
        auto const before = getDevice();
        setDevice(d);
        return before;
    }
    at::Device getDevice() const override { return {plug_in::type, current()}; }
    void setDevice(at::Device d) const override { current() = d.index() < 0 ? at::DeviceIndex(0) : d.index(); }
    void uncheckedSetDevice(at::Device d) const noexcept override { setDevice(d); }
    c10::Stream getStream(at::Device d) const override { return c10::Stream(c10::Stream::UNSAFE, d, stream()); }
    c10::Stream getDefaultStream(at::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
    c10::Stream getStreamFromGlobalPool(at::Device d, bool) const override { return c10::Stream(c10::Stream::UNSAFE, d, 7); }
    c10::Stream exchangeStream(c10::Stream s) const override { return c10::Stream(c10::Stream::UNSAFE, s.device(), std::exchange(stream(), s.id())); }
    void record(void** event, c10::Stream const& s, at::DeviceIndex, c10::EventFlag) const override {
        if (*event == nullptr) *event = new int64_t;
        *static_cast<int64_t*>(*event) = s.id();
        order().push_back("record " + std::to_string(s.id()));
    }
    void block(void* event, c10::Stream const& s) const override {
        if (event != nullptr) order().push_back("block " + std::to_string(s.id()));
    }
    bool queryEvent(void*) const override { return true; }
    void synchronizeEvent(void*) const override {}
    void destroyEvent(void* event, at::DeviceIndex) const noexcept override { delete static_cast<int64_t*>(event); }
    at::DeviceIndex deviceCount() const noexcept override { return devices; }
    bool queryStream(c10::Stream const&) const override { return true; }
    void synchronizeStream(c10::Stream const&) const override {}
    void synchronizeDevice(at::DeviceIndex) const override {}
};

/// The same memory, seen as the CPU's.
inline at::Tensor plain(at::Tensor const& t) {
    if (t.is_cpu()) return t;
    auto seen = at::from_blob(t.data_ptr(), t.sizes(), t.strides(), at::TensorOptions(t.scalar_type()));
    seen._set_conj(t.is_conj());
    seen._set_neg(t.is_neg());
    return seen;
}

inline at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                        std::optional<at::MemoryFormat> format) {
    c10::DeviceGuard const guard(device && device->has_index() ? *device : at::Device(type, current()));
    return at::detail::empty_generic(sizes, c10::GetAllocator(type), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}
inline at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device,
                                std::optional<bool>) {
    c10::DeviceGuard const guard(device && device->has_index() ? *device : at::Device(type, current()));
    return at::detail::empty_strided_generic(sizes, strides, c10::GetAllocator(type), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}
inline at::Tensor copy_from(at::Tensor const& from, at::Tensor const& to, bool) {
    plain(to).copy_(plain(from));
    return to;
}
inline at::Tensor copy_from_and_resize(at::Tensor const& from, at::Tensor const& to) {
    at::native::resize_(to, from.sizes());
    plain(to).copy_(plain(from));
    return to;
}
inline at::Scalar item(at::Tensor const& t) { return at::native::_local_scalar_dense_cpu(plain(t)); }
inline at::Tensor& set(at::Tensor& t, at::Storage source, int64_t offset, at::IntArrayRef sizes, at::IntArrayRef strides) { return at::native::set_storage_cpu_(t, std::move(source), offset, sizes, strides); }

inline void fallback(c10::OperatorHandle const& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
};

static Memory memory;
static Hooks hooks;
static bool const registered = (c10::register_privateuse1_backend("plug_in"), at::RegisterPrivateUse1HooksInterface(&hooks), true);
REGISTER_ALLOCATOR(at::kPrivateUse1, &memory)
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("as_strided", &at::native::as_strided_tensorimpl);
    m.impl("view", static_cast<at::Tensor (*)(at::Tensor const&, at::IntArrayRef)>(&at::native::view));
    m.impl("_reshape_alias", static_cast<at::Tensor (*)(at::Tensor const&, at::IntArrayRef, at::IntArrayRef)>(&at::native::_reshape_alias));
    m.impl("resize_", static_cast<at::Tensor const& (*)(at::Tensor const&, at::IntArrayRef, std::optional<at::MemoryFormat>)>(&at::native::resize_));
    m.impl("set_.source_Storage_storage_offset", &set);
    m.impl("_copy_from", &copy_from);
    m.impl("_copy_from_and_resize", &copy_from_and_resize);
    m.impl("_local_scalar_dense", &item);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

}  // namespace plug_in
