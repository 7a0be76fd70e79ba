//! Which kernels run, decided once.

use crate::math::Math;
use crate::program::Kernels;
use crate::scalar::Scalar;
use crate::simd;
use halfbyte_backend::Fault;
use std::fmt;
use std::str::FromStr;

/// The environment variable that forces a path.
pub const PATH_VARIABLE: &str = "HALFBYTE_CPU";

/// A set of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// AVX-512 (F, VL, BW, DQ): Intel and AMD servers, AMD desktops since Zen 4.
    Avx512,
    /// AVX2, FMA and F16C: almost every x86-64 processor since 2013.
    Avx2,
    /// NEON: every 64-bit Arm processor.
    Neon,
    /// Plain arrays, for the compiler to vectorize.
    Portable,
    /// The readable reference, on one thread.
    Scalar,
}

impl Path {
    /// All paths, the best first.
    pub const ALL: [Path; 5] = [Path::Avx512, Path::Avx2, Path::Neon, Path::Portable, Path::Scalar];

    /// Whether this processor can run it.
    pub fn available(self) -> bool {
        self.kernels(Math::Exact).is_some()
    }

    /// The fastest path that this processor can run.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|path| path.available()).unwrap_or(Path::Scalar)
    }

    /// The path that [`PATH_VARIABLE`] names, or [`Path::best`].
    ///
    /// # Errors
    /// As [`Path::from_str`].
    pub fn from_env() -> Result<Self, Fault> {
        match std::env::var(PATH_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(Self::best()),
        }
    }

    /// The paths that a test walks: the one that [`PATH_VARIABLE`] names, or all that this processor can run, the
    /// best first.
    ///
    /// # Errors
    /// As [`Path::from_str`].
    pub fn walk() -> Result<Vec<Self>, Fault> {
        match std::env::var(PATH_VARIABLE) {
            Ok(name) if !name.is_empty() => Ok(vec![name.parse()?]),
            _ => Ok(Self::ALL.into_iter().filter(|path| path.available()).collect()),
        }
    }

    /// Its kernels.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if this processor cannot run them.
    pub(crate) fn detect(self, math: Math) -> Result<&'static dyn Kernels, Fault> {
        self.kernels(math).ok_or_else(|| Fault::Unsupported {
            device: "cpu".into(),
            what: format!("this processor lacks what the {self} kernels need; it can run {}", Self::best()),
        })
    }

    /// Its kernels, if this processor can run them.
    ///
    /// Where the processor has AVX-512 without VNNI and VBMI, fast arithmetic is AVX2's.
    pub(crate) fn kernels(self, math: Math) -> Option<&'static dyn Kernels> {
        match (self, math) {
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512, Math::Exact) => simd::avx512::Avx512::kernels(),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512, Math::Fast) => {
                simd::avx512::Avx512::kernels()?;
                simd::avx512::Avx512::fast_kernels().or_else(simd::avx2::Avx2::fast_kernels)
            }
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, Math::Exact) => simd::avx2::Avx2::kernels(),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, Math::Fast) => simd::avx2::Avx2::fast_kernels(),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            (Path::Neon, Math::Exact) => simd::neon::Neon::kernels(),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            (Path::Neon, Math::Fast) => simd::neon::Neon::fast_kernels(),
            (Path::Portable, Math::Exact) => simd::portable::Portable::kernels(),
            (Path::Portable, Math::Fast) => simd::portable::Portable::fast_kernels(),
            (Path::Scalar, _) => Some(&Scalar),
            _ => None,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Avx512 => "avx512",
            Path::Avx2 => "avx2",
            Path::Neon => "neon",
            Path::Portable => "portable",
            Path::Scalar => "scalar",
        })
    }
}

impl FromStr for Path {
    type Err = Fault;

    /// Reads a path's name.
    ///
    /// # Errors
    /// [`Fault::Setting`] for an unknown name and for one that this processor cannot run, with those that it can.
    fn from_str(name: &str) -> Result<Self, Fault> {
        let path = Self::ALL.into_iter().find(|path| path.to_string() == name);
        if let Some(path) = path.filter(|path| path.available()) {
            return Ok(path);
        }
        let able = Self::ALL.into_iter().filter(|path| path.available());
        let able = able.map(|path| path.to_string()).collect::<Vec<_>>().join(", ");
        let why = match path {
            Some(_) => "this processor lacks what these kernels need",
            None => "there are no such kernels",
        };
        Err(Fault::Setting(format!("{PATH_VARIABLE}={name}: {why}; here it may be {able}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for path in Path::ALL {
            match path.to_string().parse::<Path>() {
                Ok(read) => assert!(path.available() && read == path),
                Err(fault) => {
                    assert!(!path.available(), "{fault}");
                    assert!(
                        fault.to_string().contains("lacks what these kernels need; here it may be "),
                        "{fault}"
                    );
                }
            }
        }
        let fault = "sse9".parse::<Path>().unwrap_err();
        let able: Vec<String> =
            Path::ALL.into_iter().filter(|path| path.available()).map(|path| path.to_string()).collect();
        let wanted =
            format!("HALFBYTE_CPU=sse9: there are no such kernels; here it may be {}", able.join(", "));
        assert_eq!(fault.to_string(), wanted);
        assert!(Path::best().available());
    }
}
