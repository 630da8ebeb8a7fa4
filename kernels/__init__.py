"""The few formulas a training step evaluates again and again, each as a function on tensors.

What stands here now is plain PyTorch on any device: the oracle for any faster implementation.
"""
