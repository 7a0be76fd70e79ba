//! A model's headers from the Hub: kilobytes by range requests, where the weights are gigabytes.

use super::options::Settings;
use super::refusal::Refusal;
use super::wanted::Weights;
use crate::error::shown;
use crate::files::{FileBytes, ModelFiles, TokenizerFiles};
use crate::header::Header;
use crate::index::ShardIndex;
use crate::native::{SHARD_INDEX, SINGLE};
use hf_hub::api::sync::ApiError;
use std::io::Read;
use ureq::http::Response;

/// Asked for at once: more than the header of any shard of today.
const FIRST: u64 = 128 << 10;

/// The largest configuration or index that is read.
const LARGEST: u64 = 64 << 20;

/// Fetches files by their URLs.
pub(super) struct Ranges<'a> {
    agent: ureq::Agent,
    settings: &'a Settings,
    url: &'a dyn Fn(&str) -> String,
}

impl<'a> Ranges<'a> {
    pub fn new(settings: &'a Settings, url: &'a dyn Fn(&str) -> String) -> Self {
        // The token goes to the Hub, never to where it redirects: ureq drops it there by default.
        Self { agent: ureq::Agent::new_with_defaults(), settings, url }
    }

    /// The files of a model, its shards cut after their headers.
    pub fn files(&self, model: &str, names: &[&str]) -> Result<ModelFiles, Refusal> {
        let named = |file: &str| format!("{model}/{file}");
        let whole = |file: &str| Ok::<_, Refusal>(FileBytes::new(named(file), self.whole(file)?));
        let optional = |file: &str| names.contains(&file).then(|| whole(file)).transpose();
        let shard_index = match Weights::of(names).map_err(Refusal::NoWeights)? {
            Weights::Single(_) => None,
            Weights::Sharded => Some(whole(SHARD_INDEX)?),
        };
        let shards = match &shard_index {
            None => vec![self.header(model, SINGLE)?],
            Some(index) => {
                let shards = ShardIndex::parse(index.name(), index.bytes())
                    .map_err(|error| Refusal::Malformed(error.to_string()))?;
                let header = |shard: &String| self.header(model, shard);
                shards.shards().iter().map(header).collect::<Result<_, _>>()?
            }
        };
        Ok(ModelFiles {
            name: model.to_owned(),
            config: whole("config.json")?,
            shard_index,
            shards,
            generation: optional("generation_config.json")?,
            tokenizer: TokenizerFiles::default(),
        })
    }

    /// A shard's header, with the length that the whole file has.
    fn header(&self, model: &str, file: &str) -> Result<FileBytes, Refusal> {
        let (mut bytes, length) = self.range(file, 0, FIRST)?;
        let malformed = |error: crate::CheckpointError| Refusal::Malformed(error.to_string());
        let needed = Header::prefix_len(file, &bytes, length).map_err(malformed)?;
        if needed > bytes.len() as u64 {
            let (rest, _) = self.range(file, bytes.len() as u64, needed)?;
            bytes.extend_from_slice(&rest);
        }
        bytes.truncate(needed as usize);
        Ok(FileBytes::beginning(format!("{model}/{file}"), bytes, length))
    }

    /// Bytes `from..to` of a file, fewer if it is shorter, and the file's length.
    fn range(&self, file: &str, from: u64, to: u64) -> Result<(Vec<u8>, u64), Refusal> {
        let response = self.get(file, Some(format!("bytes={from}-{}", to - 1)))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let length = match (response.status().as_u16(), header("content-range")) {
            (206, Some(range)) => range.rsplit_once('/').and_then(|(_, total)| total.parse().ok()),
            // A server without ranges sends it from the beginning: as much as is needed is read of it.
            (200, _) if from == 0 => header("content-length").and_then(|total| total.parse().ok()),
            _ => None,
        };
        let Some(length) = length else {
            let text = format!("{}: no length in the answer to a range request", shown(file));
            return Err(Refusal::Malformed(text));
        };
        Ok((read(response, to - from)?, length))
    }

    /// A small file.
    fn whole(&self, file: &str) -> Result<Vec<u8>, Refusal> {
        let bytes = read(self.get(file, None)?, LARGEST + 1)?;
        if bytes.len() as u64 > LARGEST {
            return Err(Refusal::Malformed(format!("{} is larger than {LARGEST} bytes", shown(file))));
        }
        Ok(bytes)
    }

    fn get(&self, file: &str, range: Option<String>) -> Result<Response<ureq::Body>, Refusal> {
        let mut request = self.agent.get((self.url)(file));
        if let Some(token) = &self.settings.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.call().map_err(|error| Refusal::new(file, ApiError::RequestError(Box::new(error))))
    }
}

/// The first `most` bytes of an answer.
fn read(response: Response<ureq::Body>, most: u64) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let mut body = response.into_body();
    body.as_reader()
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| Refusal::Unreachable(error.to_string()))?;
    Ok(bytes)
}
