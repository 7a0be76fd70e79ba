//! The WGSL kernels of halfbyte, one file per fused step.
