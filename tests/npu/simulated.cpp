// A pretended Ascend NPU: torch's spare device type under another name, its memory the host's, its
// kernels the CPU's, and HCCL played by gloo. It computes what a CPU computes, and nothing of it
// says how a real card rounds, overlaps work, or runs out of memory.

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/extension.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

namespace {

using at::Tensor;
constexpr auto NPU = c10::DeviceType::PrivateUse1;
thread_local c10::DeviceIndex current = 0;
int count = 0;  // of the cards that this process sees
std::mutex counting;
size_t in_use = 0, peak = 0;  // bytes
std::set<const void*> pinned;

// Memory

struct Block {
    void* data;
    size_t bytes;
};

void release(void* context) {
    auto block = static_cast<Block*>(context);
    {
        std::lock_guard<std::mutex> lock(counting);
        in_use -= block->bytes;
        pinned.erase(block->data);
    }
    std::free(block->data);
    delete block;
}

struct Memory : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        auto block = new Block{std::malloc(std::max<size_t>(bytes, 1)), bytes};
        std::lock_guard<std::mutex> lock(counting);
        in_use += bytes;
        peak = std::max(peak, in_use);
        return {block->data, block, &release, c10::Device(NPU, current)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
    void copy_data(void* to, const void* from, size_t bytes) const override {
        std::memcpy(to, from, bytes);
    }
};

struct PinnedMemory final : Memory {  // the host's, which the card may read at its leisure
    c10::DataPtr allocate(size_t bytes) override {
        auto block = new Block{std::malloc(std::max<size_t>(bytes, 1)), 0};
        std::lock_guard<std::mutex> lock(counting);
        pinned.insert(block->data);
        return {block->data, block, &release, c10::Device(c10::kCPU)};
    }
};

Memory memory;
PinnedMemory pinned_memory;
REGISTER_ALLOCATOR(NPU, &memory);

// Devices

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return NPU; }
    c10::Device exchangeDevice(c10::Device device) const override {
        auto before = getDevice();
        setDevice(device);
        return before;
    }
    c10::Device getDevice() const override { return {NPU, current}; }
    void setDevice(c10::Device device) const override {
        TORCH_CHECK(device.index() < count, "npu:", device.index(), " of ", count, " is not there");
        current = device.index();
    }
    void uncheckedSetDevice(c10::Device device) const noexcept override {
        current = device.index();
    }
    c10::Stream getStream(c10::Device device) const override {
        return c10::Stream(c10::Stream::DEFAULT, device);
    }
    c10::Stream exchangeStream(c10::Stream stream) const override {
        return getStream(stream.device());
    }
    c10::DeviceIndex deviceCount() const noexcept override {
        return static_cast<c10::DeviceIndex>(count);
    }
    void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return count > 0; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    bool isPinnedPtr(const void* data) const override {
        std::lock_guard<std::mutex> lock(counting);
        return pinned.count(data) > 0;
    }
    c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
};
Hooks hooks;

// Operators: what is not listed is computed by the CPU on copies.

Tensor on_host(const Tensor& tensor) {  // the same memory, seen as the CPU's
    if (!tensor.defined() || !tensor.is_privateuseone()) return tensor;
    auto options = tensor.options().device(c10::kCPU);
    return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

std::optional<Tensor> on_host(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(on_host(*tensor)) : tensor;
}

Tensor on_card(const Tensor& tensor) { return tensor.defined() ? tensor.to(NPU) : tensor; }

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> type,
             std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
    c10::OptionalDeviceGuard guard(device && device->has_index() ? device : std::nullopt);
    return at::detail::empty_generic_symint(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                            at::dtype_or_default(type), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                     std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<c10::Device> device, std::optional<bool>) {
    c10::OptionalDeviceGuard guard(device && device->has_index() ? device : std::nullopt);
    return at::detail::empty_strided_symint_generic(size, stride, &memory,
                                                    c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                    at::dtype_or_default(type));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
    on_host(to).copy_(on_host(from));
    return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
    to.resize_(from.sizes());
    return copy_from(from, to, false);
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                   c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
                   c10::SymInt groups) {
    return on_card(at::convolution_symint(on_host(x), on_host(weight), on_host(bias), stride, padding,
                                          dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> wanted) {
    std::vector<c10::SymInt> bias{weight.sym_size(transposed ? 1 : 0) * (transposed ? groups : 1)};
    auto [dx, dw, db] = at::convolution_backward_symint(
        on_host(gradient), on_host(x), on_host(weight), c10::SymIntArrayRef(bias), stride, padding,
        dilation, transposed, output_padding, groups, wanted);
    return {on_card(dx), on_card(dw), on_card(db)};
}

// Its running statistics are changed without the schema saying so: copies of them would be.
std::tuple<Tensor, Tensor, Tensor> batch_norm(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& mean, const std::optional<Tensor>& variance, bool training,
    double momentum, double eps) {
    auto [y, m, v] = at::native_batch_norm(on_host(x), on_host(weight), on_host(bias), on_host(mean),
                                           on_host(variance), training, momentum, eps);
    return {on_card(y), on_card(m), on_card(v)};
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
    m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("_copy_from", &copy_from);
    m.impl("_copy_from_and_resize", &copy_from_and_resize);
    m.impl("as_strided", &at::native::as_strided_tensorimpl);
    m.impl("view", &at::native::view);
    m.impl("resize_", &at::native::resize_);
    m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
    m.impl("set_.source_Tensor", &at::native::set_tensor_);
    m.impl("record_stream", [](Tensor&, c10::Stream) {});
    m.impl("convolution_overrideable", &convolution);
    m.impl("convolution_backward_overrideable", &convolution_backward);
    m.impl("native_batch_norm", &batch_norm);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
    m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
    KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
    KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
}

// Collectives: each waits, where a card's would go on by themselves.

using Tensors = std::vector<Tensor>;

struct Done final : c10d::Work {
    explicit Done(const Tensors& tensors)
        : Work(-1), future(c10::make_intrusive<c10::ivalue::Future>(
                        c10::ListType::create(c10::TensorType::get()))) {
        future->markCompleted(c10::IValue(tensors));
    }
    bool isCompleted() override { return true; }
    bool isSuccess() const override { return true; }
    bool wait(std::chrono::milliseconds) override { return true; }
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future; }

    c10::intrusive_ptr<c10::ivalue::Future> future;
};

Tensors all_on_host(const Tensors& tensors) {
    Tensors views;
    for (const auto& tensor : tensors) {
        TORCH_CHECK(tensor.is_privateuseone(), "HCCL does not take tensors of ", tensor.device());
        views.push_back(on_host(tensor));
    }
    return views;
}

struct Hccl final : c10d::Backend {
    explicit Hccl(c10::intrusive_ptr<c10d::Backend> gloo)
        : Backend(gloo->getRank(), gloo->getSize()), gloo(std::move(gloo)) {}
    const std::string getBackendName() const override { return "hccl"; }

    c10::intrusive_ptr<c10d::Work> allreduce(Tensors& tensors,
                                             const c10d::AllreduceOptions& options) override {
        auto views = all_on_host(tensors);
        gloo->allreduce(views, options)->wait();
        return c10::make_intrusive<Done>(tensors);
    }
    c10::intrusive_ptr<c10d::Work> broadcast(Tensors& tensors,
                                             const c10d::BroadcastOptions& options) override {
        auto views = all_on_host(tensors);
        gloo->broadcast(views, options)->wait();
        return c10::make_intrusive<Done>(tensors);
    }
    c10::intrusive_ptr<c10d::Work> allgather(std::vector<Tensors>& all, Tensors& own,
                                             const c10d::AllgatherOptions& options) override {
        std::vector<Tensors> views;
        for (const auto& tensors : all) views.push_back(all_on_host(tensors));
        auto view = all_on_host(own);
        gloo->allgather(views, view, options)->wait();
        return c10::make_intrusive<Done>(all.front());
    }

    c10::intrusive_ptr<c10d::Backend> gloo;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    at::RegisterPrivateUse1HooksInterface(&hooks);
    m.def("see", [](int cards) { count = cards; });
    m.def("current_device", [] { return current; });
    m.def("set_device", [](int index) { Guard().setDevice({NPU, static_cast<c10::DeviceIndex>(index)}); });
    m.def("peak", [] { return peak; });
    m.def("reset_peak", [] { peak = in_use; });
    m.def("hccl", [](c10::intrusive_ptr<c10d::Backend> gloo) -> c10::intrusive_ptr<c10d::Backend> {
        return c10::make_intrusive<Hccl>(std::move(gloo));
    });
}
