//! A request as it is remembered.

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The Hub itself.
    Hub,
    /// Where it sends for large files.
    Cdn,
}

/// A request, and what was sent for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Which server was asked.
    pub site: Site,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// What follows the path's `?`.
    pub query: String,
    /// The first byte and the last one of the range that was asked for; without a last one up to the end.
    pub range: Option<(u64, Option<u64>)>,
    /// What was said after `Bearer `.
    pub token: Option<String>,
    /// The file that was asked for, in its repository.
    pub file: Option<String>,
    /// The status of the answer; 0 if there was none.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub sent: u64,
}
