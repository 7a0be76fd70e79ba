//! A stand-in of the Hugging Face Hub: its HTTP interface on loopback, as far as downloads need it.
//!
//! Two servers on two ports, as the real one has two hosts: the Hub answers `/api/models/…` and
//! `/<model>/resolve/<revision>/<file>`, and sends large files on to its CDN by a signed link. Ranges, etags,
//! `x-repo-commit`, `x-linked-etag` and `x-linked-size`, gated, private, missing and renamed repositories
//! are as on the real one; what it does badly is said with [`StandIn::misbehave`]. Every request is
//! remembered, with the bytes that were sent and the token that came with it.
//!
//! ```
//! use halfbyte_hub_stand_in::{Repository, StandIn};
//!
//! let repository = Repository::new("org/name").with("config.json", b"{}".to_vec());
//! let hub = StandIn::start(vec![repository]).unwrap();
//! // HF_ENDPOINT points any command at it.
//! assert!(hub.endpoint().starts_with("http://127.0.0.1:"));
//! ```

#![forbid(unsafe_code)]

mod answer;
mod fault;
mod http;
mod repository;
mod request;
mod server;

pub use fault::{Fault, Rule};
pub use repository::{Access, Body, Repository};
pub use request::{Request, Site};
pub use server::{StandIn, TOKEN, TOKEN_WITHOUT_ACCESS};
