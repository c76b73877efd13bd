"""Products with a delta by hand-written kernels, and as operators for compiled layers."""
