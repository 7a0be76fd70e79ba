//! The CPU backend, and its scalar twin that is the reference for all kernels.
