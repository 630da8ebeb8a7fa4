"""Literal, slow transcriptions of one training step of each baseline method.

Each module writes its step down statement by statement in the order in which the released
code executes it.  Nothing is fused, cached or shared, so these can serve as oracles for an
optimised step.  They hold no tests and import nothing but PyTorch and the standard library.
"""
