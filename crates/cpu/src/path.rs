//! Which kernels run, decided once.

use crate::program::Kernels;
use crate::scalar::Scalar;
use halfbyte_backend::Fault;
use std::fmt;
use std::str::FromStr;

/// The environment variable that forces a path.
pub const PATH_VARIABLE: &str = "HALFBYTE_CPU";

/// A set of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// The readable reference, on one thread.
    Scalar,
}

impl Path {
    /// All paths, the best first.
    pub const ALL: [Path; 1] = [Path::Scalar];

    /// Whether this processor can run it.
    pub fn available(self) -> bool {
        match self {
            Path::Scalar => true,
        }
    }

    /// The fastest path that this processor can run.
    pub fn best() -> Self {
        Path::Scalar
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

    /// Its kernels.
    pub(crate) fn kernels(self) -> &'static dyn Kernels {
        match self {
            Path::Scalar => &Scalar,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Scalar => "scalar",
        })
    }
}

impl FromStr for Path {
    type Err = Fault;

    /// Reads a path's name.
    ///
    /// # Errors
    /// [`Fault::Invalid`] for an unknown name, [`Fault::Unsupported`] if this processor cannot run it.
    fn from_str(name: &str) -> Result<Self, Fault> {
        let known = Self::ALL.map(|path| path.to_string()).join(", ");
        let path = Self::ALL.into_iter().find(|path| path.to_string() == name);
        let path = path
            .ok_or_else(|| Fault::Invalid(format!("{PATH_VARIABLE} is {name}, which is none of {known}")))?;
        if !path.available() {
            return Err(Fault::Unsupported {
                device: "cpu".into(),
                what: format!(
                    "{PATH_VARIABLE} is {path}, which this processor lacks; it has {}",
                    Self::best()
                ),
            });
        }
        Ok(path)
    }
}
