//! A model's headers from the Hub: kilobytes by range requests, where the weights are gigabytes.

use super::connection::Ask;
use super::download::Repo;
use super::refusal::Refusal;
use super::transfer::{range, read};
use super::wanted::Weights;
use crate::error::shown;
use crate::files::{FileBytes, ModelFiles, TokenizerFiles};
use crate::header::Header;
use crate::index::ShardIndex;
use crate::native::{SHARD_INDEX, SINGLE};
use ureq::Body;

/// Asked for at once: more than the header of any shard of today.
const FIRST: u64 = 128 << 10;

/// The largest configuration or index that is read.
const LARGEST: u64 = 64 << 20;

impl Repo {
    /// The files of the model, its shards cut after their headers. Nothing is written.
    pub fn outline(&self) -> Result<ModelFiles, Refusal> {
        let names = self.names();
        let whole = |file: &str| Ok::<_, Refusal>(FileBytes::new(self.named(file), self.whole(file)?));
        let optional = |file: &str| names.contains(&file).then(|| whole(file)).transpose();
        let shard_index = match Weights::of(&names).map_err(Refusal::NoWeights)? {
            Weights::Single(_) => None,
            Weights::Sharded => Some(whole(SHARD_INDEX)?),
        };
        let shards = match &shard_index {
            None => vec![self.header(SINGLE)?],
            Some(index) => {
                let shards = ShardIndex::parse(index.name(), index.bytes())
                    .map_err(|error| Refusal::Malformed(error.to_string()))?;
                shards.shards().iter().map(|shard| self.header(shard)).collect::<Result<_, _>>()?
            }
        };
        Ok(ModelFiles {
            name: self.model.clone(),
            config: whole("config.json")?,
            shard_index,
            shards,
            generation: optional("generation_config.json")?,
            tokenizer: TokenizerFiles::default(),
        })
    }

    /// A shard's header, with the length that the whole file has.
    pub(super) fn header(&self, file: &str) -> Result<FileBytes, Refusal> {
        let url = self.connection.url(&self.model, &self.commit, file);
        let fetch = |from: u64, to: u64| range(&self.connection, file, &url, from, to, &|_| {});
        let (mut bytes, length) = fetch(0, FIRST)?;
        let malformed = |error: crate::CheckpointError| Refusal::Malformed(error.to_string());
        let needed = Header::prefix_len(file, &bytes, length).map_err(malformed)?;
        if needed > bytes.len() as u64 {
            let (rest, _) = fetch(bytes.len() as u64, needed)?;
            bytes.extend_from_slice(&rest);
        }
        bytes.truncate(needed as usize);
        Ok(FileBytes::beginning(self.named(file), bytes, length))
    }

    fn named(&self, file: &str) -> String {
        format!("{}/{file}", self.model)
    }

    /// A small file.
    fn whole(&self, file: &str) -> Result<Vec<u8>, Refusal> {
        let url = self.connection.url(&self.model, &self.commit, file);
        let response = self.connection.insist(file, &url, Ask::Whole, &|_| {})?;
        let length = response.body().content_length();
        match length {
            Some(length) if length > LARGEST => {
                Err(Refusal::Malformed(format!("{} is larger than {LARGEST} bytes", shown(file))))
            }
            Some(length) => read(&self.connection, file, response, length),
            None => whole_of_unknown_length(file, response),
        }
    }
}

/// A server may also say nothing of the length, and close the connection at the end.
fn whole_of_unknown_length(file: &str, response: ureq::http::Response<Body>) -> Result<Vec<u8>, Refusal> {
    let mut body = response.into_body();
    body.with_config().limit(LARGEST).read_to_vec().map_err(|error| Refusal::of_request(file, error))
}
