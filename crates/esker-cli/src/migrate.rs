//! To and from fjall 3: `import-fjall`, `export-fjall`.
//!
//! Both move whole trees, by links where that works: the two stores keep their entries in the same trees,
//! and only journal and catalogue differ. Each store reads and writes its own: fjall's journal is replayed
//! by fjall, esker's by esker, both in a copy beside the target. What must stay true: the source is only
//! read; the target gets its name when it is whole and durable.
//!
//! The verbs are there without the feature `fjall` as well, and say that they need it.

#[cfg(feature = "fjall")]
mod database;
#[cfg(feature = "fjall")]
mod export;
#[cfg(feature = "fjall")]
mod import;
#[cfg(feature = "fjall")]
mod options;
#[cfg(feature = "fjall")]
mod report;

use std::path::PathBuf;

use crate::failure::Outcome;
use crate::output::Console;

/// Make a keyspace of a fjall 3 database that nobody has open
///
/// SOURCE is locked meanwhile, and stays as it is. TARGET must not exist. fjall replays its journal in a
/// copy beside TARGET; tables and blob files get there by hard link, reflink or copy, whichever works first.
/// What esker has no option for is said.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// The fjall database
    source: PathBuf,
    /// Where the keyspace goes; must not exist
    target: PathBuf,
    #[command(flatten)]
    how: How,
}

/// Make a fjall 3 database of a keyspace, checkpoint or copy that nobody has open
///
/// SOURCE is locked while it is copied, and stays as it is. TARGET must not exist. esker replays its journal
/// in a copy beside TARGET; tables and blob files get there by hard link, reflink or copy, whichever works
/// first.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// The keyspace, checkpoint or copy
    source: PathBuf,
    /// Where the fjall database goes; must not exist
    target: PathBuf,
    #[command(flatten)]
    how: How,
}

/// What both take.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "fjall"), allow(dead_code, reason = "there is nothing to do with them"))]
struct How {
    /// Copy every file instead of linking it
    #[arg(long)]
    copy: bool,
    /// Read both with their own crates and compare every entry before TARGET gets its name
    #[arg(long)]
    verify: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "fjall")]
impl How {
    fn transfer(&self) -> esker::Transfer {
        if self.copy { esker::Transfer::Copy } else { esker::Transfer::Auto }
    }
}

/// `esker import-fjall`
#[cfg(feature = "fjall")]
pub fn import(args: &ImportArgs, console: Console) -> Outcome {
    import::run(&args.source, &args.target, &args.how, console)
}

/// `esker export-fjall`
#[cfg(feature = "fjall")]
pub fn export(args: &ExportArgs, console: Console) -> Outcome {
    export::run(&args.source, &args.target, &args.how, console)
}

/// `esker import-fjall`, in a program that cannot.
#[cfg(not(feature = "fjall"))]
pub fn import(args: &ImportArgs, _: Console) -> Outcome {
    Err(without(&args.source))
}

/// `esker export-fjall`, in a program that cannot.
#[cfg(not(feature = "fjall"))]
pub fn export(args: &ExportArgs, _: Console) -> Outcome {
    Err(without(&args.source))
}

#[cfg(not(feature = "fjall"))]
fn without(source: &std::path::Path) -> crate::failure::Failure {
    crate::failure::Failure::Failed(format!(
        "cannot convert {}: this program was built without fjall; build it with --features fjall",
        source.display()
    ))
}
