"""Prepared data sets, their batches, and the augmentation of training images."""
