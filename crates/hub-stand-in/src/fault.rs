//! What a server can do badly.

use crate::request::{Request, Site};
use std::str::FromStr;

/// One way to misbehave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Closes the connection after this many bytes of the body.
    Cut(u64),
    /// Answers this status; with the seconds of a `retry-after`.
    Status(u16, Option<u64>),
    /// Sends this many bytes of the body, and then nothing more.
    Stall(u64),
    /// Sends this many bytes a second.
    Slow(u64),
    /// Serves the file without its last bytes, so many of them, as if it were no longer.
    Truncated(u64),
    /// Changes the byte at this place of the file.
    Corrupt(u64),
    /// Says that the file is larger than it is, by so many bytes, in `x-linked-size`.
    Lies(u64),
    /// Sends the whole file whatever range is asked for.
    NoRanges,
}

/// A fault and the requests that it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// A part of the paths that are concerned; for a file that the CDN serves, of its name.
    pub path: String,
    /// Only requests to this server.
    pub site: Option<Site>,
    /// Requests that are let through before.
    pub after: u32,
    /// How many requests it concerns.
    pub times: u32,
}

impl Rule {
    /// `fault` for every request whose path has `path` in it.
    pub fn new(fault: Fault, path: &str) -> Self {
        Self { fault, path: path.into(), site: None, after: 0, times: u32::MAX }
    }

    /// The same for the first `times` requests.
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    /// The same after `after` requests.
    pub fn after(self, after: u32) -> Self {
        Self { after, ..self }
    }

    /// The same for one of the two servers.
    pub fn at(self, site: Site) -> Self {
        Self { site: Some(site), ..self }
    }

    /// Whether it concerns a request for `file`, which is then counted.
    pub(crate) fn strikes(&mut self, request: &Request, file: &str) -> bool {
        let concerned = request.path.contains(&self.path) || file.contains(&self.path);
        // Checks that come before a body have none to cut.
        let bodiless = request.method == "HEAD" && !matches!(self.fault, Fault::Status(..) | Fault::Lies(_));
        if !concerned || bodiless || self.site.is_some_and(|site| site != request.site) || self.times == 0 {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// `FAULT[@PART-OF-PATH][*TIMES]`, as in `cut:1000@model.safetensors*1`, `status:429:2`, `slow:100000`.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?}: expected cut:N, status:N, status:N:SECONDS, stall:N, slow:N, truncated:N, corrupt:N, \
                 lies:N or no-ranges, then perhaps @PART-OF-PATH and *TIMES"
            )
        };
        let (rest, times) = match text.rsplit_once('*') {
            Some((rest, times)) => (rest, times.parse().map_err(|_| wrong())?),
            None => (text, u32::MAX),
        };
        let (fault, path) = rest.split_once('@').unwrap_or((rest, ""));
        let (name, number) = fault.split_once(':').unwrap_or((fault, ""));
        let count = || number.parse().map_err(|_| wrong());
        let fault = match name {
            "cut" => Fault::Cut(count()?),
            "stall" => Fault::Stall(count()?),
            "slow" => Fault::Slow(count()?),
            "truncated" => Fault::Truncated(count()?),
            "corrupt" => Fault::Corrupt(count()?),
            "lies" => Fault::Lies(count()?),
            "no-ranges" => Fault::NoRanges,
            "status" => {
                let (status, seconds) = number.split_once(':').unwrap_or((number, ""));
                let seconds = (!seconds.is_empty()).then(|| seconds.parse().map_err(|_| wrong()));
                Fault::Status(status.parse().map_err(|_| wrong())?, seconds.transpose()?)
            }
            _ => return Err(wrong()),
        };
        Ok(Rule::new(fault, path).times(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_as_people_write_them() {
        let parsed = |text: &str| text.parse::<Rule>().unwrap();
        assert_eq!(parsed("cut:10@model*2"), Rule::new(Fault::Cut(10), "model").times(2));
        assert_eq!(parsed("status:429:2"), Rule::new(Fault::Status(429, Some(2)), ""));
        assert_eq!(parsed("no-ranges"), Rule::new(Fault::NoRanges, ""));
        for text in ["", "cut", "cut:x", "status:", "boom:1", "cut:1*many"] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }
}
