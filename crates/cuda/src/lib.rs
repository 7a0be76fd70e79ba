//! The CUDA backend on burn's CubeCL.
