"""The stages of the GPU suite, how their sections are run against the clock, and what is kept of them."""
