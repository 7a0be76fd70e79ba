//! `cargo xtask hub`: a stand-in of the Hugging Face Hub, to point `HF_ENDPOINT` at.

use halfbyte_hub_stand_in::{Access, Repository, Rule, StandIn, TOKEN};
use std::path::PathBuf;
use std::time::Duration;

/// What is served, and how badly.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model's directory, or one that holds models as ORG/NAME.
    dir: PathBuf,
    /// The port of this machine to listen on; 0 is any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Serve files to those with a token only, as of a model whose licence must be accepted.
    #[arg(long)]
    gated: bool,
    /// Misbehave: cut:N, status:N, status:N:SECONDS, stall:N, slow:N, truncated:N, corrupt:N, lies:N or
    /// no-ranges, then perhaps @PART-OF-PATH and *TIMES. May be given again.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Rule>,
}

/// Serves until the process is ended.
pub fn run(args: &Args) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", args.dir.display());
    let access = if args.gated { Access::Gated } else { Access::Public };
    let found = Repository::all_in(&args.dir).map_err(failed)?;
    if found.is_empty() {
        return Err(format!("{} holds no model: no directory with a config.json", args.dir.display()));
    }
    let models: Vec<Repository> = found.into_iter().map(|model| model.with_access(access)).collect();
    let ids: Vec<String> = models.iter().map(|model| model.id().to_owned()).collect();
    let hub =
        StandIn::start_loud(models, args.port).map_err(|error| format!("port {}: {error}", args.port))?;
    for rule in &args.fault {
        hub.misbehave(rule.clone());
    }
    println!("HF_ENDPOINT={} serves {}", hub.endpoint(), ids.join(", "));
    if args.gated {
        println!("HF_TOKEN={TOKEN} opens them");
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
