"""The convolution's epilogue at the sizes of a training, with everything and with little."""

import torch

from fastpeer.kernels.fused.bias_sum_relu import bias_sum_relu


def launch(dtype, summed, relu, layout=torch.channels_last):
    out = torch.empty(128, 64, 32, 32, dtype=dtype, memory_format=layout)
    bias = torch.empty(64, dtype=torch.promote_types(dtype, torch.float32))
    return lambda: bias_sum_relu(out, bias, out.clone() if summed else None, relu)


CASES = {
    "bfloat16": launch(torch.bfloat16, summed=False, relu=True),
    "bfloat16-sum": launch(torch.bfloat16, summed=True, relu=True),
    "float16-planes": launch(torch.float16, summed=True, relu=False, layout=torch.contiguous_format),
    "float32": launch(torch.float32, summed=False, relu=True),
    "float64": launch(torch.float64, summed=True, relu=True),
}
