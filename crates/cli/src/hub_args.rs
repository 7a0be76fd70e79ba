//! Where a model of the Hub comes from.

use clap::Args;
use std::path::PathBuf;

/// The options of all commands that may download a model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Hub")]
pub struct HubArgs {
    /// Branch, tag or commit on the Hub.
    #[arg(long)]
    pub revision: Option<String>,
    /// Access token for the Hub [default: HF_TOKEN, or the stored login].
    #[arg(long)]
    pub token: Option<String>,
    /// Use only what is already downloaded.
    #[arg(long)]
    pub offline: bool,
    /// Where downloads live [default: HF_HOME, shared with Python].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}
