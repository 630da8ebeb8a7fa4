"""What to read: prepared data sets, their batches, and the augmentation of training images."""
