//! The index of the largest of each output's logits; the lowest among equals; NaN never wins. One launch, a cube
//! an output; the next submission's `embed` reads the tokens where this leaves them.

use cubecl::prelude::*;

/// No index.
const NONE: u32 = u32::MAX;

/// The kernel. `logits` `[outputs, stride]`, `chosen` `[outputs]`.
#[cube(launch_unchecked)]
pub(crate) fn argmax(
    logits: &Array<f32>,
    chosen: &mut Array<u32>,
    vocabulary: u32,
    stride: u32,
    #[comptime] units: usize,
) {
    let mut values = SharedMemory::<f32>::new(units);
    let mut indices = SharedMemory::<u32>::new(units);
    let unit = UNIT_POS as usize;
    let base = CUBE_POS_X as usize * stride as usize;
    let mut value = f32::new(-3.4e38);
    let mut index = comptime!(NONE).runtime();
    let mut i = unit;
    while i < vocabulary as usize {
        let logit = logits[base + i];
        if logit > value {
            value = logit;
            index = i as u32;
        }
        i += units;
    }
    values[unit] = value;
    indices[unit] = index;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit < step {
            let other = values[unit + step];
            let other_index = indices[unit + step];
            if other > values[unit] || (other == values[unit] && other_index < indices[unit]) {
                values[unit] = other;
                indices[unit] = other_index;
            }
        }
        step /= 2;
    }
    if unit == 0 {
        chosen[CUBE_POS_X as usize] = select(indices[0] == NONE, 0u32, indices[0]);
    }
}
