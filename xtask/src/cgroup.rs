//! A control group with a limit of memory, made for one command and removed after it.
//!
//! The command's tests use this file, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A group below this process's own, of version 1 or 2.
pub struct Group {
    path: PathBuf,
    version: u32,
}

impl Group {
    /// A group that may hold `bytes`. The error says why this machine lets none be made.
    pub fn new(name: &str, bytes: u64) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("no cgroups: {error}"))?;
        let of = |controller: &str| {
            own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                let found = controllers.split(',').any(|name| name == controller);
                found.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let root = Path::new("/sys/fs/cgroup");
        let (parent, version) = match (of("memory"), of("")) {
            (Some(path), _) => (root.join("memory").join(path), 1),
            (None, Some(path)) => (root.join(path), 2),
            (None, None) => return Err("this process is in no memory cgroup".into()),
        };
        let path = parent.join(format!("{name}-{}", std::process::id()));
        let failed = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        fs::create_dir(&path).map_err(|error| failed(&path, error))?;
        let group = Self { path, version };
        let limit = group.path.join(if version == 1 { "memory.limit_in_bytes" } else { "memory.max" });
        // In version 2 the file is missing where the parent does not delegate its memory controller.
        fs::write(&limit, bytes.to_string()).map_err(|error| failed(&limit, error))?;
        Ok(group)
    }

    /// A command that joins the group, then becomes `program`.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        command.arg(self.path.join("cgroup.procs")).arg(program);
        command
    }

    /// Processes of the group that the kernel killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64, String> {
        let file = self.path.join(if self.version == 1 { "memory.oom_control" } else { "memory.events" });
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.ok_or_else(|| format!("{} counts no oom_kill", file.display()))
    }

    /// The most bytes that the group held at once, page cache included.
    pub fn peak(&self) -> Option<u64> {
        let file = if self.version == 1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended; what stays behind otherwise is an empty folder.
        _ = fs::remove_dir(&self.path);
    }
}

/// Has the system forget its copies of the files in `dir`, so that whoever reads them next pays for the memory.
pub fn drop_cached_files(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            drop_cached_files(&path);
        } else {
            // GNU dd tells the system so where it reads nothing of a file.
            let input = format!("if={}", path.display());
            _ = Command::new("dd")
                .args([&input, "of=/dev/null", "iflag=nocache", "count=0", "status=none"])
                .status();
        }
    }
}
