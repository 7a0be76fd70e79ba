//! A launch with everything that the driver wants of it.

use crate::launch::{Arg, Counts, Launch};
use cubecl::InfoBuilder;
use cudarc::driver::{DriverError, result as driver, sys};
use std::ffi::c_void;

/// A loaded kernel. Modules stay for the life of the process, as CubeCL's do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function {
    pub function: sys::CUfunction,
    pub shared_memory: u32,
}

/// A launch with everything that the driver wants of it.
pub(super) struct Prepared {
    pub function: Function,
    pub grid: [u32; 3],
    pub units: u32,
    pub pointers: Vec<u64>,
    pub scalars: Vec<u64>,
}

/// The scalars of a launch, laid out as CubeCL's kernels take them.
pub(super) fn scalars(launch: &Launch, sizes: &[u64], counts: Counts) -> Vec<u64> {
    let mut info = InfoBuilder::default();
    let address = launch.kernel.settings().address_type;
    for &size in sizes {
        info.metadata.register_array(size, size, address);
    }
    for arg in &launch.args {
        match *arg {
            Arg::U32(value) => info.scalars.push(value),
            Arg::F32(value) => info.scalars.push(value),
            Arg::Rows => info.scalars.push(counts.rows),
            Arg::Outputs => info.scalars.push(counts.outputs),
            Arg::Array(..) | Arg::Places => {}
        }
    }
    info.finish(address).data
}

impl Prepared {
    pub(super) fn launch(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        let [x, y, z] = self.grid;
        let pointers =
            self.pointers.iter().map(|pointer| std::ptr::from_ref(pointer).cast_mut().cast::<c_void>());
        let mut params: Vec<*mut c_void> = pointers.collect();
        params.push(self.scalars.as_ptr().cast_mut().cast());
        // SAFETY: the function is loaded; its parameters are its buffers in order and the constant with its scalars,
        // which the driver copies before this returns; the buffers live as long as the program that is recorded.
        unsafe {
            let shared = self.function.shared_memory;
            let function = self.function.function;
            driver::launch_kernel(function, (x, y, z), (self.units, 1, 1), shared, stream, &mut params)
        }
    }
}
