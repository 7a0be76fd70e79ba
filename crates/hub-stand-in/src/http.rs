//! As much of HTTP/1.1 as is needed: the head of a request, and answers of a known length.

use crate::request::{Request, Site};
use std::io::{self, BufRead, Read, Write};

/// The longest head of a request.
const LONGEST_HEAD: u64 = 64 << 10;

/// Reads a request's head. `None` if the connection was closed before it.
pub(crate) fn read(from: &mut impl BufRead, site: Site) -> io::Result<Option<(Request, bool)>> {
    let mut lines = Vec::new();
    let mut from = from.take(LONGEST_HEAD);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a request");
    let mut words = lines.first().ok_or_else(bad)?.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(bad()) };
    let header = |name: &str| {
        lines.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let range = header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    });
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        site,
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        range,
        token: header("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned()),
        file: None,
        status: 0,
        sent: 0,
    };
    let close = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some((request, close)))
}

/// Status, headers and the length that a body has.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) length: u64,
}

impl Head {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!(
            "HTTP/1.1 {} {}\r\ncontent-length: {}\r\n",
            self.status,
            reason(self.status),
            self.length
        );
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        to.write_all((text + "\r\n").as_bytes())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        _ => "Status",
    }
}
