"""How a fused kernel refuses its arguments."""


class KernelRefusal(ValueError):
    """A Triton kernel does not take these arguments; the plain PyTorch formula of the same name may."""


def require(fulfilled: bool, kernel: str, message: str) -> None:
    """Refuse arguments of a kernel, called `kernel` in the message, unless `fulfilled`.

    Raises:
        KernelRefusal: with the message, which says what must be and what was given.
    """
    if not fulfilled:
        raise KernelRefusal(f"{kernel}: {message}")
