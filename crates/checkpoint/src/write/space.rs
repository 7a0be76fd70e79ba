//! How much a disk has left, and whether it may be written to.

use std::path::Path;

/// Bytes that this user may still write on the file system of `path`, or of the nearest directory above it
/// that exists. `None` where the system does not tell.
pub fn free_space(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|path| path.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(there).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}

/// Whether this user may write into `path`, or into the nearest directory above it that exists; `true` where the system
/// does not tell.
pub fn is_writable(path: &Path) -> bool {
    let Ok(path) = std::path::absolute(path) else { return false };
    let Some(there) = path.ancestors().find(|path| path.exists()).filter(|path| path.is_dir()) else {
        return false;
    };
    #[cfg(unix)]
    {
        rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok()
    }
    #[cfg(not(unix))]
    {
        !there.metadata().is_ok_and(|found| found.permissions().readonly())
    }
}
