//! Run Hugging Face models in 4 bits on any GPU, the CPU, or both at once.
