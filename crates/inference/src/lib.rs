//! Model families, KV cache, sampling and the generation loop.
