//! Builds a keyspace directory out of another one's files: what checkpoint and cold copy share.
//!
//! What must stay true: only files that nobody ever writes again are linked (tables, blob files,
//! sealed segments); `current`, manifests, CATALOG and CHECKPOINT are always new bytes; CHECKPOINT is
//! written after everything it names, everything is synced before the directory gets its name, and
//! whatever fails leaves neither the name nor the unfinished directory behind.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::catalog::{Catalog, Origin};
use crate::error::{Error, IoContext, Result};
use crate::files::{self, Placed, Transfer};
use crate::manifest::{self, Version};
use crate::progress::{Progress, Tally};

const CHECKPOINT_MAGIC: &str = "ESKER-CHECKPOINT";
const CHECKPOINT_VERSION: u32 = 1;

/// One tree to take over.
pub(crate) struct PlannedTree {
    pub(crate) id: u64,
    pub(crate) version: Version,
    pub(crate) manifest: Vec<u8>,
}

/// One journal segment to take over.
pub(crate) struct PlannedSegment {
    pub(crate) id: u64,
    pub(crate) chain: u64,
    /// Only sealed segments are immutable for good.
    pub(crate) sealed: bool,
}

/// What the new directory will hold, and the keyspace directory that its files come from.
pub(crate) struct Plan {
    pub(crate) source: PathBuf,
    pub(crate) catalog: Catalog,
    pub(crate) trees: Vec<PlannedTree>,
    pub(crate) segments: Vec<PlannedSegment>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Relative to the checkpoint.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// xxh3-128 of the file, in hex; of segments the chain value of their last frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xxh3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chain: Option<String>,
    /// `linked`, `reflinked`, `copied`, or `written` anew.
    pub(crate) how: String,
}

/// The CHECKPOINT file without its list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointHead {
    pub(crate) uuid: String,
    pub(crate) timeline: String,
    pub(crate) seqno: u64,
    pub(crate) created_ms: u64,
    pub(crate) partitions: Vec<String>,
    pub(crate) left_out: Vec<String>,
}

pub(crate) struct CheckpointFile {
    pub(crate) head: CheckpointHead,
    pub(crate) files: Vec<FileRecord>,
}

/// What was built, and how.
pub(crate) struct Built {
    pub(crate) tally: Tally,
    pub(crate) records: Vec<FileRecord>,
    /// What must be synced one by one if the filesystem is not synced at once.
    to_sync: Vec<PathBuf>,
}

/// Removes an unfinished directory unless it was published.
pub(crate) struct Unfinished {
    path: PathBuf,
    done: bool,
}

impl Unfinished {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        files::create_new_dir(&path)?;
        Ok(Self { path, done: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn publish(mut self, target: &Path) -> Result<()> {
        files::publish(&self.path, target)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = files::remove_dir_if_present(&self.path)
        {
            tracing::warn!(%error, "an unfinished checkpoint stays behind");
        }
    }
}

impl Plan {
    /// Every file that is taken over: where it is below a keyspace directory, and its identity.
    fn files(&self) -> impl Iterator<Item = Planned<'_>> {
        let tables = self.trees.iter().flat_map(|tree| {
            let tables = tree.version.tables().map(|table| Planned {
                relative: PathBuf::from(files::PARTITIONS)
                    .join(tree.id.to_string())
                    .join(files::TABLES)
                    .join(table.id.to_string()),
                identity: Identity::Hash(table.checksum),
            });
            let blobs = tree.version.blobs.iter().map(|blob| Planned {
                relative: PathBuf::from(files::PARTITIONS)
                    .join(tree.id.to_string())
                    .join(files::BLOBS)
                    .join(blob.id.to_string()),
                identity: Identity::Hash(blob.checksum),
            });
            tables.chain(blobs)
        });
        tables.chain(self.segments.iter().map(|segment| Planned {
            relative: relative(&self.source, &files::segment(&self.source, segment.id)),
            identity: Identity::Segment(segment),
        }))
    }

    /// The same files in another directory that was built from this plan.
    pub(crate) fn rebased(self, source: &Path) -> Self {
        Self { source: source.to_path_buf(), ..self }
    }

    /// Builds everything but CATALOG and CHECKPOINT in the existing, empty directory `dir`.
    /// `progress` says which phase it is, and its bytes where they are known.
    pub(crate) fn build(
        &self,
        dir: &Path,
        transfer: Transfer,
        mut progress: Progress,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Built> {
        let mut built = Built { tally: Tally::default(), records: Vec::new(), to_sync: Vec::new() };
        self.make_dirs(dir, &mut built)?;
        progress.files_total = self.files().count() as u64;
        report(progress);
        for planned in self.files() {
            let (from, to) = (self.source.join(&planned.relative), dir.join(&planned.relative));
            let placed = match planned.identity {
                Identity::Segment(segment) if !segment.sealed => {
                    files::duplicate(&from, &to, transfer)
                }
                _ => files::place(&from, &to, transfer),
            }?;
            let bytes = std::fs::metadata(&to).at("inspect", &to)?.len();
            built.tally.add(placed, bytes);
            // Linked tables were synced when they were made; a segment's seal may not be yet.
            if placed != Placed::Linked || matches!(planned.identity, Identity::Segment(_)) {
                built.to_sync.push(to);
            }
            built.records.push(planned.record(bytes, placed));
            progress.files_done += 1;
            progress.bytes_done += bytes;
            report(progress);
        }
        for tree in &self.trees {
            self.write_manifest(dir, tree, &mut built)?;
        }
        Ok(built)
    }

    fn make_dirs(&self, dir: &Path, built: &mut Built) -> Result<()> {
        let mut make = |path: PathBuf| {
            files::create_new_dir(&path)?;
            built.to_sync.push(path);
            Ok(())
        };
        make(files::journal(dir))?;
        make(files::partitions(dir))?;
        for tree in &self.trees {
            let to = files::tree(dir, tree.id);
            make(to.clone())?;
            make(files::tables(&to))?;
            // lsm-tree silently accepts that it is missing, and with it every value.
            if tree.version.separates_values {
                make(files::blobs(&to))?;
            }
        }
        Ok(())
    }

    fn write_manifest(&self, dir: &Path, tree: &PlannedTree, built: &mut Built) -> Result<()> {
        let to = files::tree(dir, tree.id);
        let current = manifest::encode_current(tree.version.id, &tree.manifest);
        for (path, bytes) in [
            (files::version(&to, tree.version.id), &tree.manifest),
            (files::current(&to), &current),
        ] {
            files::write_new(&path, bytes)?;
            built.records.push(written(dir, &path, bytes));
            built.to_sync.push(path);
        }
        Ok(())
    }
}

enum Identity<'a> {
    Hash(u128),
    Segment(&'a PlannedSegment),
}

struct Planned<'a> {
    relative: PathBuf,
    identity: Identity<'a>,
}

impl Planned<'_> {
    fn record(&self, bytes: u64, placed: Placed) -> FileRecord {
        let (xxh3, chain) = match self.identity {
            Identity::Hash(hash) => (Some(format!("{hash:032x}")), None),
            Identity::Segment(segment) => (None, Some(format!("{:016x}", segment.chain))),
        };
        let how = match placed {
            Placed::Linked => "linked",
            Placed::Reflinked => "reflinked",
            Placed::Copied => "copied",
        };
        let path = self.relative.to_string_lossy().into_owned();
        FileRecord { path, bytes, xxh3, chain, how: how.to_owned() }
    }
}

fn relative(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

fn written(dir: &Path, path: &Path, bytes: &[u8]) -> FileRecord {
    FileRecord {
        path: relative(dir, path).to_string_lossy().into_owned(),
        bytes: bytes.len() as u64,
        xxh3: Some(format!("{:032x}", xxh3_128(bytes))),
        chain: None,
        how: "written".to_owned(),
    }
}

impl Built {
    /// Lists the directory anew after its journal was absorbed into its tables: only what was
    /// there before keeps the way it came.
    pub(crate) fn relist(&mut self, dir: &Path, catalog: &Catalog) -> Result<()> {
        let before = std::mem::take(&mut self.records);
        self.to_sync.retain(|path| path.exists());
        for entry in &catalog.partitions {
            let tree = files::tree(dir, entry.tree);
            let checked = manifest::check(&tree)?;
            let tables = checked.version.tables().map(|t| (files::table(&tree, t.id), t.checksum));
            let blobs =
                checked.version.blobs.iter().map(|b| (files::blob(&tree, b.id), b.checksum));
            for (path, hash) in tables.chain(blobs) {
                let name = relative(dir, &path).to_string_lossy().into_owned();
                let how = before.iter().find(|r| r.path == name).map_or("written", |r| &r.how);
                self.records.push(FileRecord {
                    bytes: std::fs::metadata(&path).at("inspect", &path)?.len(),
                    path: name,
                    xxh3: Some(format!("{hash:032x}")),
                    chain: None,
                    how: how.to_owned(),
                });
            }
            let manifest = files::version(&tree, checked.version.id);
            self.records.push(written(dir, &manifest, &checked.manifest));
            self.records.push(written(dir, &files::current(&tree), &checked.current));
            self.to_sync.extend([tree, manifest]);
        }
        Ok(())
    }

    /// Writes CATALOG and CHECKPOINT and makes everything durable.
    pub(crate) fn seal(
        mut self,
        dir: &Path,
        catalog: &Catalog,
        head: &CheckpointHead,
    ) -> Result<Tally> {
        let (path, bytes) = (files::catalog(dir), catalog.encode());
        files::write_new(&path, &bytes)?;
        self.records.push(written(dir, &path, &bytes));
        self.to_sync.push(path);
        let path = files::checkpoint(dir);
        files::write_new(&path, &encode_checkpoint(head, &self.records)?)?;
        self.to_sync.push(path);
        if !files::sync_filesystem(dir)? {
            for path in &self.to_sync {
                files::sync(path)?;
            }
            files::sync_dir(dir)?;
        }
        Ok(self.tally)
    }
}

/// The catalog of a copy: a branch of the source's history at `seqno` that nobody has gone on with.
pub(crate) fn branch(source: &Catalog, seqno: u64) -> Catalog {
    let mut catalog = source.clone();
    catalog.origin = Some(Origin { uuid: source.uuid, timeline: source.timeline, seqno });
    catalog.fork_on_open = true;
    catalog
}

/// A first line with magic, version and the hash of the rest; then JSON, one file a line.
fn encode_checkpoint(head: &CheckpointHead, records: &[FileRecord]) -> Result<Vec<u8>> {
    let json = |e: serde_json::Error| Error::io("encode", Path::new(files::CHECKPOINT), e.into());
    let mut body = serde_json::to_string(head).map_err(json)?;
    body.pop();
    body.push_str(",\"files\":[");
    for (number, record) in records.iter().enumerate() {
        body.push_str(if number == 0 { "\n" } else { ",\n" });
        body.push_str(&serde_json::to_string(record).map_err(json)?);
    }
    body.push_str("\n]}\n");
    let hash = checkpoint_hash(&CHECKPOINT_VERSION.to_string(), &body);
    Ok(format!("{CHECKPOINT_MAGIC} {CHECKPOINT_VERSION} {hash:032x}\n{body}").into_bytes())
}

/// The hash covers the version, too.
fn checkpoint_hash(version: &str, body: &str) -> u128 {
    xxh3_128(format!("{CHECKPOINT_MAGIC} {version}\n{body}").as_bytes())
}

/// Reads and checks the CHECKPOINT file of `dir`.
pub(crate) fn read_checkpoint(dir: &Path) -> Result<CheckpointFile> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(flatten)]
        head: CheckpointHead,
        files: Vec<FileRecord>,
    }
    let path = files::checkpoint(dir);
    let bytes = files::read(&path)?;
    let corrupt = |offset: u64, what: &str| Error::corrupt(&path, Some(offset), what.to_owned());
    let text =
        std::str::from_utf8(&bytes).map_err(|e| corrupt(e.valid_up_to() as u64, "not UTF-8"))?;
    let (first, body) =
        text.split_once('\n').ok_or_else(|| corrupt(0, "there is no first line"))?;
    let words: Vec<&str> = first.split(' ').collect();
    let [CHECKPOINT_MAGIC, version, hash] = words[..] else {
        return Err(corrupt(0, "the first line is not that of a checkpoint"));
    };
    let computed = format!("{:032x}", checkpoint_hash(version, body));
    if hash != computed {
        return Err(Error::corrupt_because(
            &path,
            Some(first.len() as u64 + 1),
            "the hash does not match the content",
            hash,
            computed,
        ));
    }
    let version = version.parse().map_err(|_| corrupt(0, "the version is no number"))?;
    if version != CHECKPOINT_VERSION {
        return Err(Error::UnsupportedFormat {
            path,
            found: version,
            supported: CHECKPOINT_VERSION,
        });
    }
    let Body { head, files } = serde_json::from_str(body)
        .map_err(|e| corrupt(first.len() as u64 + 1, &format!("the list cannot be read: {e}")))?;
    Ok(CheckpointFile { head, files })
}

/// Refuses a target that exists or lies inside the source, and says where it will be built.
pub(crate) fn check_target(source: &Path, target: &Path) -> Result<()> {
    if target.symlink_metadata().is_ok() {
        return Err(Error::TargetExists { path: target.to_path_buf() });
    }
    let parent = files::parent(target);
    let inside = parent.canonicalize().at("open", parent)?;
    if !inside.is_dir() {
        let what = format!("{} is not a directory, so it cannot hold the target", parent.display());
        return Err(Error::InvalidInput(what));
    }
    let source = source.canonicalize().at("open", source)?;
    if inside.starts_with(&source) {
        return Err(Error::TargetInside { target: target.to_path_buf(), source_path: source });
    }
    Ok(())
}

/// The tag that makes the names of unfinished directories unique.
pub(crate) fn tag() -> u64 {
    files::random_u128() as u64
}
