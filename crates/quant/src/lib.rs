//! NF4 and FP4 blockwise quantization with double quantization, as bitsandbytes does it.
