//! Sixteen floats at a time: what the fast kernels need of a processor.
//!
//! Kernels are written once, over [`Lanes`], and compiled for each instruction set inside
//! [`Lanes::run`]. A value of a `Lanes` type is the proof that the processor has the instructions: it is
//! only made after detection, so its methods are safe.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_bytes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bytes;
pub(crate) mod bytes;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod neon;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_bytes;
pub(crate) mod portable;
mod portable_bytes;

use crate::kernels::tile::Panel;

/// Vectors of sixteen f32, in as many registers as they take.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// Sixteen floats.
    type V: Copy;
    /// Sixteen values to look codes up in.
    type Book: Copy;

    /// Rows of activations, at most 4, that are multiplied with a weight while it is in a register: two
    /// sums for each must fit beside it.
    const GROUP: usize;

    /// Runs `work` where these instructions may be used. Closures and what they call must be
    /// `#[inline(always)]` to be compiled for them.
    fn run<R>(self, work: impl FnOnce() -> R) -> R;

    /// Sixteen times `value`.
    fn splat(self, value: f32) -> Self::V;
    /// Sixteen floats from memory.
    fn load(self, from: &[f32; 16]) -> Self::V;
    /// Sixteen floats to memory.
    fn store(self, v: Self::V, to: &mut [f32; 16]);
    /// Little-endian f32.
    fn load_f32(self, from: &[u8; 64]) -> Self::V;
    /// Little-endian f16, widened.
    fn load_f16(self, from: &[u8; 32]) -> Self::V;
    /// Little-endian bf16, widened.
    fn load_bf16(self, from: &[u8; 32]) -> Self::V;
    /// Signed bytes, converted.
    fn load_i8(self, from: &[u8; 16]) -> Self::V;
    /// The low nibble of each byte less 8, and the high nibble less 8.
    fn load_nibbles(self, from: &[u8; 16]) -> (Self::V, Self::V);

    /// `a * b + c`
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// The sum of all sixteen.
    fn sum(self, v: Self::V) -> f32;
    /// The sums of sixteen vectors, each added up in the order of [`Lanes::sum`].
    #[inline(always)]
    fn sums(self, v: &[Self::V; 16]) -> [f32; 16] {
        let mut sums = [0.0; 16];
        for (sum, &v) in sums.iter_mut().zip(v) {
            *sum = self.sum(v);
        }
        sums
    }

    /// A codebook times the scale of a block: each product is rounded, as the definition of a quantized
    /// weight has it.
    fn book(self, code: &[f32; 16], scale: f32) -> Self::Book;
    /// The values of 32 codes: those of the high nibbles (even elements) and of the low ones (odd).
    fn look_up(self, codes: &[u8; 16], book: Self::Book) -> (Self::V, Self::V);

    /// Multiplies a tile of decoded weights with rows of activations, in blocks as large as the registers
    /// hold.
    fn multiply(self, panel: Panel<'_>, y: &mut [f32]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::random::Stream;

    fn sums_are_added_in_the_order_of_one_sum<L: Lanes>(lanes: L) {
        let mut stream = Stream::new(12);
        let values: [[f32; 16]; 16] = std::array::from_fn(|_| std::array::from_fn(|_| stream.normal()));
        lanes.run(
            #[inline(always)]
            || {
                let mut vectors = [lanes.splat(0.0); 16];
                for (vector, values) in vectors.iter_mut().zip(&values) {
                    *vector = lanes.load(values);
                }
                let sums = lanes.sums(&vectors);
                for (vector, sum) in vectors.into_iter().zip(sums) {
                    assert_eq!(lanes.sum(vector), sum);
                }
            },
        );
    }

    #[test]
    fn sixteen_sums_are_those_of_one() {
        sums_are_added_in_the_order_of_one_sum(portable::Portable);
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::Avx512::kernels().is_some() {
                sums_are_added_in_the_order_of_one_sum(avx512::Avx512(()));
            }
            if avx2::Avx2::kernels().is_some() {
                sums_are_added_in_the_order_of_one_sum(avx2::Avx2(()));
            }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        sums_are_added_in_the_order_of_one_sum(neon::Neon::<false>(()));
    }
}
