//! Repositories and what is in them: `init`, `keygen`, `list`, `info`; and how the others open one.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use esker_archive::{BackupId, BackupInfo, Key, Repository, RepositoryOptions};
use serde_json::{Value, json};

use super::proof::proved;
use super::{InfoArgs, InitArgs, KeygenArgs, ListArgs, Place};
use crate::escape::Escaped;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Console, Results, say, say_json};

const KEY_VARIABLE: &str = "ESKER_ARCHIVE_KEY";

/// Opens the repository with the key that there is.
pub fn open(place: &Place) -> Outcome<Repository> {
    let options = RepositoryOptions::default();
    let options = match key(place)? {
        Some(key) => options.key(key),
        None => options,
    };
    Ok(Repository::open(&place.location, options)?)
}

/// The backup that is meant.
pub fn find(repository: &Repository, asked: Option<&str>) -> Outcome<BackupId> {
    Ok(repository.find(asked)?)
}

fn key(place: &Place) -> Outcome<Option<Key>> {
    if let Some(file) = &place.key_file {
        return Ok(Some(Key::from_file(file)?));
    }
    match std::env::var(KEY_VARIABLE) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(Key::from_hex(&text)?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::Failed(format!("{KEY_VARIABLE} is not 64 hex digits")))
        }
    }
}

/// `esker archive init`
pub fn init(args: &InitArgs, console: Console) -> Outcome {
    let options = RepositoryOptions::default();
    let options = match (args.encrypt, key(&args.place)?) {
        (true, Some(key)) => options.key(key),
        (true, None) => {
            let what = "--encrypt needs a key, from --key-file or ESKER_ARCHIVE_KEY";
            return Err(Failure::Usage(what.to_owned()));
        }
        (false, None) => options,
        // Whoever has a key at hand and forgets the word would store everything readable.
        (false, Some(_)) => {
            let what = "a key was given and --encrypt was not";
            return Err(Failure::Usage(what.to_owned()));
        }
    };
    let about = Repository::create(&args.place.location, options)?.about();
    if console.is_quiet() {
        return Ok(());
    }
    let encrypted = if about.encrypted { ", encrypted" } else { "" };
    say(format_args!("repository {} in {}{encrypted}", about.id, about.location))
}

/// `esker archive keygen`
pub fn keygen(args: &KeygenArgs, console: Console) -> Outcome {
    let path = &args.file;
    let mut options = OpenOptions::new();
    let created = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = created.map_err(|e| Failure::file("create", path, &e))?;
    let written = file.write_all(format!("{}\n", Key::generate().to_hex()).as_bytes());
    written.and_then(|()| file.sync_all()).map_err(|e| Failure::file("write", path, &e))?;
    let parent = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|e| Failure::file("sync", parent, &e))?;
    if console.is_quiet() {
        return Ok(());
    }
    say(format_args!("{} holds a new key; keep copies where the repository is not", path.display()))
}

/// `esker archive list`
pub fn list(args: &ListArgs) -> Outcome {
    let infos = open(&args.place)?.infos()?;
    if args.json {
        return say_json(&infos);
    }
    let rows = infos.iter().map(|info| {
        vec![
            info.backup.clone(),
            output::time(info.created_ms),
            info.uuid[..8].to_owned(),
            output::bytes(info.raw_bytes),
            output::bytes(info.added_bytes),
            output::bytes(info.pinned_bytes),
            plain(info.label.as_deref().unwrap_or_default()),
        ]
    });
    let head = ["backup", "taken", "keyspace", "holds", "added", "pins", "label"];
    say(output::table(&head, &rows.collect::<Vec<_>>()))
}

/// `esker archive info`
pub fn info(args: &InfoArgs) -> Outcome {
    let repository = open(&args.place)?;
    match &args.backup {
        None => about(&repository, args.json),
        Some(asked) => {
            let info = repository.info(find(&repository, Some(asked))?)?;
            if args.json { say_json(&info) } else { print(&info) }
        }
    }
}

fn about(repository: &Repository, json: bool) -> Outcome {
    let about = repository.about();
    let backups = repository.list()?.len() as u64;
    // A manifest that cannot be read must not keep us from saying what else is known: that is for `check`.
    let proofs = match repository.proofs() {
        Err(error) if error.kind() == esker_archive::ErrorKind::Corrupt => None,
        proofs => Some(proofs?),
    };
    if json {
        let mut value = json!(about);
        if let Value::Object(fields) = &mut value {
            fields.insert("backups".to_owned(), json!(backups));
            fields.insert("proofs".to_owned(), json!(proofs));
        }
        return say_json(&value);
    }
    let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
    let fenced = match about.conditional_create {
        true => "the store refuses to overwrite",
        false => "the store overwrites; names that cannot meet are relied on",
    };
    print_lines(&[
        ("repository", about.location.clone()),
        ("id", about.id.clone()),
        ("created", output::time(about.created_ms)),
        ("encrypted", yes(about.encrypted)),
        ("writers", fenced.to_owned()),
        ("backups", output::count(backups)),
        ("data", proofs.as_ref().map_or_else(|| "unknown; see check".to_owned(), proved)),
    ])
}

fn print(info: &BackupInfo) -> Outcome {
    let names = |names: &[String]| {
        if names.is_empty() { "none".to_owned() } else { plain(&names.join(", ")) }
    };
    print_lines(&[
        ("backup", info.backup.clone()),
        ("keyspace", info.uuid.clone()),
        ("timeline", info.timeline.clone()),
        ("seqno", info.seqno.to_string()),
        ("taken", output::time(info.created_ms)),
        ("label", info.label.as_deref().map_or_else(|| "none".to_owned(), plain)),
        ("partitions", names(&info.partitions)),
        ("left out", names(&info.left_out)),
        ("holds", format!("{} in {}", output::bytes(info.raw_bytes), files(info.files))),
        ("stored", output::bytes(info.stored_bytes)),
        ("added", output::bytes(info.added_bytes)),
        ("pins", output::bytes(info.pinned_bytes)),
    ])
}

/// What others have written, so that it steers no terminal.
fn plain(text: &str) -> String {
    Escaped(text.as_bytes()).to_string()
}

fn files(number: u64) -> String {
    output::counted(number, "file")
}

fn print_lines(lines: &[(&str, String)]) -> Outcome {
    let mut results = Results::new();
    for (name, value) in lines {
        results.line(format_args!("{name:<12}{value}"))?;
    }
    results.flush()
}
