//! A sound repository, of which every attack gets a copy, with something beside it that nobody may touch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use esker::Keyspace;
use esker_archive::{Key, PushOptions, Repository, RepositoryOptions, Result};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::forge::{Backup, Piece};
use crate::content::{copy_tree, files_below};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// What is copied.
struct Sound {
    dir: tempfile::TempDir,
}

fn key() -> Key {
    Key::from_hex(KEY).unwrap()
}

fn options(encrypted: bool) -> RepositoryOptions {
    let options = RepositoryOptions::default().attempts(1);
    if encrypted { options.key(key()) } else { options }
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let users = keyspace.partition("users", Default::default()).unwrap();
        let mut state = 7_u64;
        let mut noise = |len: usize| -> Vec<u8> {
            let step = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            (0..len).map(step).collect()
        };
        for number in 0..2_600_u32 {
            users.insert(number.to_be_bytes(), noise(1000)).unwrap();
        }
        let words = keyspace.partition("words", Default::default()).unwrap();
        for number in 0..40_u32 {
            words.insert(number.to_be_bytes(), noise(1000)).unwrap();
        }
        keyspace.flush().unwrap();
        words.insert("in the journal", "only").unwrap();
        keyspace.backup_to(dir.path().join("checkpoint")).unwrap();
        for encrypted in [false, true] {
            let at = dir.path().join(name_of(encrypted));
            let repository = Repository::create(at.to_str().unwrap(), options(encrypted)).unwrap();
            let push = PushOptions::default();
            repository.push_directory(dir.path().join("checkpoint"), push).unwrap();
        }
        Sound { dir }
    })
}

fn name_of(encrypted: bool) -> &'static str {
    if encrypted { "encrypted" } else { "plain" }
}

fn largest_below(repository: &Path) -> String {
    let pieces = files_below(&repository.join("files"));
    let largest = pieces.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    largest.strip_prefix(repository).unwrap().to_str().unwrap().to_owned()
}

fn of_users(repository: &Path) -> String {
    let mut json = Backup::only(repository).json();
    let table = table(&mut json);
    let (hash, bytes) = (table["xxh3"].as_str().unwrap(), &table["bytes"]);
    format!("files/{}/{hash}-{bytes}/0", &hash[..2])
}

/// The table of the partition `users`.
pub fn table(json: &mut Value) -> &mut Value {
    let files = json["files"].as_array_mut().unwrap().iter_mut();
    let tables = files.filter(|file| file["partition"] == "users");
    tables.max_by_key(|file| file["bytes"].as_u64()).unwrap()
}

/// One attack's own copy.
pub struct Scene {
    dir: tempfile::TempDir,
    encrypted: bool,
    /// The name of the only manifest.
    pub manifest: String,
    /// The name of a piece of three frames; of the table of `users`, if names tell that.
    pub piece: String,
}

impl Scene {
    pub fn new(encrypted: bool) -> Self {
        let from = sound().dir.path().join(name_of(encrypted));
        let manifest = Backup::only(&from).name;
        let piece = if encrypted { largest_below(&from) } else { of_users(&from) };
        let scene = Self { dir: tempfile::tempdir().unwrap(), encrypted, manifest, piece };
        copy_tree(&from, &scene.repository());
        fs::create_dir_all(scene.outside("elsewhere")).unwrap();
        fs::write(scene.outside("precious"), "nobody may touch this").unwrap();
        fs::write(scene.outside("elsewhere/0"), "nor this").unwrap();
        fs::create_dir(scene.dir.path().join("place")).unwrap();
        scene
    }

    pub fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.repository().join(name)
    }

    pub fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join("outside").join(name)
    }

    pub fn target(&self) -> PathBuf {
        self.dir.path().join("place/target")
    }

    pub fn open(&self) -> Result<Repository> {
        Repository::open(self.repository().to_str().unwrap(), options(self.encrypted))
    }

    pub fn checkpoint(&self) -> PathBuf {
        sound().dir.path().join("checkpoint")
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    pub fn backup(&self) -> Backup {
        Backup::only(&self.repository())
    }

    pub fn read_piece(&self) -> Piece {
        Piece::read(&self.repository(), &self.piece)
    }

    pub fn write_piece(&self, piece: &Piece) {
        self.write(&piece.name, piece.encode());
    }

    /// Another manifest of the same name, with every check right.
    pub fn write_manifest(&self, change: impl FnOnce(&mut Value)) {
        let backup = self.backup();
        let mut json = backup.json();
        change(&mut json);
        let backup = backup.with_text(&serde_json::to_vec(&json).unwrap());
        self.write(&backup.name, backup.encode());
    }

    /// The unfinished directory that a restore of the only backup works in.
    pub fn unfinished(&self) -> PathBuf {
        let (seqno, tag) = self.manifest.rsplit_once('/').unwrap().1.split_once('-').unwrap();
        let parts = xxh3_128(b"users\0words") as u32;
        let seqno: u64 = seqno.parse().unwrap();
        self.target().with_file_name(format!(".target.esker-restore-{tag}-{seqno:x}-{parts:08x}"))
    }

    /// Everything that nobody may touch, whatever is done.
    pub fn surroundings(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.dir.path().to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                let metadata = fs::symlink_metadata(&entry).unwrap();
                let name = entry.file_name().unwrap().to_string_lossy().into_owned();
                let unfinished = name.starts_with(".target.esker-restore-");
                if entry == self.repository() || entry == self.target() || unfinished {
                    continue;
                }
                let content = match fs::read_link(&entry) {
                    Ok(link) => link.into_os_string().into_string().unwrap(),
                    Err(_) if metadata.is_file() => {
                        format!("{:x}", xxh3_128(&fs::read(&entry).unwrap()))
                    }
                    Err(_) => String::new(),
                };
                let (inode, mode) = (metadata.ino(), metadata.permissions().mode());
                found.insert(entry.clone(), format!("{inode} {mode:o} {content}"));
                if metadata.is_dir() {
                    pending.push(entry);
                }
            }
        }
        found
    }
}
