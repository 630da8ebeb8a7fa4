"""Runs code for CUDA where there is none: on tensors without data that say they are on a GPU."""

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# PyTorch itself asks two objects about CUDA, and builds without CUDA have no first and an empty second:
# the guard, for the current device and stream, and the hooks, for whether CUDA was built.
SOURCE = r"""
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using namespace c10;

struct Guard final : impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return getDevice(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, getDevice()); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
};

struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  // Decide which kernels run, and so which memory format a convolution's result has.
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  double batchnormMinEpsilonCuDNN() const override { return 0; }
  long versionCuDNN() const { return 91000; }
  long versionRuntimeCuDNN() const { return 91000; }
};

// The first call puts these objects in the place of PyTorch's, the second puts those back.
extern "C" void exchange() {
  static const impl::DeviceGuardImplInterface* guard = new Guard;
  guard = impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].exchange(guard);
  // Others keep a reference to PyTorch's hooks, so they stay where they are and get other methods.
  static const void* methods = *reinterpret_cast<const void**>(new Hooks);
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  std::swap(methods, *reinterpret_cast<const void**>(hooks));
}
"""


def build(folder: Path) -> ctypes.CDLL:
    """Compile what stands in for CUDA's part of PyTorch; takes a second."""
    root = Path(torch.__file__).parent
    source, library = folder / "fake_cuda.cpp", folder / "fake_cuda.so"
    source.write_text(SOURCE)
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    subprocess.run(["g++", *flags, str(source), "-lc10", "-ltorch_cpu", "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@contextmanager
def _exchanged(library: ctypes.CDLL) -> Iterator[None]:
    library.exchange()
    try:
        yield
    finally:
        library.exchange()


@contextmanager
def fake_cuda(library: ctypes.CDLL) -> Iterator[None]:
    """Let "cuda" be a device of tensors that have no data, and raise where data are asked for."""
    with (
        nullcontext() if torch.cuda.is_available() else _exchanged(library),
        # The process's first backward pass started threads for the devices of that time.
        torch.autograd.set_multithreading_enabled(False),
        # torch.autocast asks these, and switches itself off.
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        torch.compiler.set_stance("force_eager"),
        FakeTensorMode(),
    ):
        yield


def to_fake_cuda(network: nn.Module) -> nn.Module:
    """Give a network channels-last weights on the fake GPU; `.to("cuda")` refuses where they are fake."""
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None:
                    layout = torch.channels_last if old.dim() == 4 else torch.contiguous_format
                    new = torch.empty(old.shape, dtype=old.dtype, device="cuda", memory_format=layout)
                    table[name] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
    return network


def _convolution_add_relu(x, weight, other, alpha, bias, stride, padding, dilation, groups):
    return aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups) + other


_STAND_INS = {
    aten._fused_sgd_: lambda *args, **kwargs: None,
    aten.cudnn_convolution_add_relu: _convolution_add_relu,
}
"""For operators that have no shape function: what comes out has the right shape, dtype and device."""


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the GPU or devices mix, and fake tensors alone let it pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = _STAND_INS.get(func.overloadpacket, func)(*args, **kwargs)
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
        copies = func in (aten._to_copy.default, aten.copy_.default)
        devices = {one.device for one in tensors if copies or one.dim() > 0}
        queued = copies and (kwargs.get("non_blocking") or args[2:] == (True,))
        if len(devices) > 1 and not queued:
            raise RuntimeError(f"{func} on {devices}")
        return result
