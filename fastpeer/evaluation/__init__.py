"""Evaluation of trained networks: attacks, accuracies, and the paper's figures for comparison."""
