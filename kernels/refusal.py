"""What a fused kernel raises."""


class KernelRefusal(ValueError):
    """A Triton kernel does not take these arguments; the plain PyTorch formula of the same name may."""
