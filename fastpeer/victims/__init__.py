"""How a network is attacked fast: folded, as a chain, compiled; its logits and input gradients."""
