"""The few formulas a training step evaluates again and again, each as a function on tensors.

Each module here is a formula in plain PyTorch, for any device: the oracle of the Triton kernel that has the
same name in `fused/`. `choice.py` puts either kind together.
"""
