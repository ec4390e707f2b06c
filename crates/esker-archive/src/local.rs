//! A repository in a local directory: plain files in plain directories.
//!
//! What must stay true: who can write to the directory cannot make us read, write or remove anything
//! outside of it, or wait for ever. Below it no symbolic link is followed and nothing but a plain file is
//! opened. The directory itself may be a link. Whoever changes a directory while we look at it is not
//! held off: a repository belongs to one user.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::store::{WRITE_BYTES, blocking};

/// What lies where a plain file or directory should.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} is {what}", path.display())]
pub(crate) struct NotPlain {
    path: PathBuf,
    what: &'static str,
}

impl From<NotPlain> for Error {
    fn from(source: NotPlain) -> Self {
        // The one kind that is not tried again and says nothing else.
        Self::NotSupported { source: Box::new(source) }
    }
}

/// No file was written later than this, in seconds since 1970: the year 36,812. Behind it calendars end.
const MODIFIED_SECS_MAX: u64 = 1 << 40;

/// The same body in parts that are written at once; see there. Nothing is copied.
fn in_small_parts(body: &PutPayload) -> PutPayload {
    let parts = body.iter().flat_map(|part| {
        let begins = (0..part.len()).step_by(WRITE_BYTES);
        begins.map(|begin| part.slice(begin..part.len().min(begin + WRITE_BYTES)))
    });
    parts.collect()
}

/// A local directory as an object store.
#[derive(Debug)]
pub(crate) struct PlainFiles {
    root: Arc<PathBuf>,
    inner: Arc<LocalFileSystem>,
}

impl std::fmt::Display for PlainFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

/// What is done to an object.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Touch {
    /// It must be a plain file, if it is there.
    Open,
    /// Its name is given to another file or to none, whatever it is.
    Rename,
}

impl PlainFiles {
    /// The directory, which exists.
    pub(crate) fn new(root: &LocalPath) -> Result<Self> {
        let inner = LocalFileSystem::new_with_prefix(root)?.with_fsync(true);
        Ok(Self { root: Arc::new(root.to_owned()), inner: Arc::new(inner) })
    }

    async fn check(&self, object: &Path, touch: Touch) -> Result<()> {
        let (root, object) = (Arc::clone(&self.root), object.clone());
        blocking(move || check(&root, &object, touch)).await
    }
}

/// Refuses what is not plain on the way to an object, and the object itself where it is opened.
fn check(root: &LocalPath, object: &Path, touch: Touch) -> Result<()> {
    let mut path = root.to_owned();
    let mut parts = object.parts().peekable();
    while let Some(part) = parts.next() {
        path.push(part.as_ref());
        let Ok(found) = fs::symlink_metadata(&path) else { return Ok(()) };
        // A directory is no object: to open it says that there is none.
        let is_opened = touch == Touch::Open || parts.peek().is_some();
        let what = odd(&found).filter(|_| is_opened);
        if let Some(what) = what {
            return Err(NotPlain { path, what }.into());
        }
    }
    Ok(())
}

/// What somebody made of a file or directory, if it is neither.
fn odd(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    if kind.is_symlink() {
        Some("a symbolic link, which is not followed in a repository")
    } else if !kind.is_file() && !kind.is_dir() {
        Some("neither a file nor a directory")
    } else if found.modified().is_ok_and(|time| time > latest()) {
        Some("from the far future")
    } else {
        None
    }
}

fn latest() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED_SECS_MAX)
}

/// What a directory holds: objects, and the directories below it. Links and whatever else is odd are
/// objects: whoever opens them is told.
fn entries(root: &LocalPath, dir: &LocalPath) -> Result<(Vec<ObjectMeta>, Vec<PathBuf>)> {
    let wrong = |source: std::io::Error| Error::Generic { store: "local", source: source.into() };
    let mut found = (Vec::new(), Vec::new());
    let listing = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(found);
        }
        listing => listing.map_err(wrong)?,
    };
    for entry in listing {
        let entry = entry.map_err(wrong)?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata.map_err(wrong)?,
        };
        let path = entry.path();
        if metadata.is_dir() {
            found.1.push(path);
        } else if !is_staged(&entry.file_name().to_string_lossy()) {
            let below = path.strip_prefix(root).expect("it was found there");
            let parts = below.iter().map(|part| part.to_string_lossy().into_owned());
            let modified = metadata.modified().map_err(wrong)?.min(latest());
            found.0.push(ObjectMeta {
                location: Path::from_iter(parts),
                last_modified: modified.into(),
                size: metadata.len(),
                e_tag: None,
                version: None,
            });
        }
    }
    Ok(found)
}

/// What `object_store` writes before it has its name: `<name>#<number>`.
fn is_staged(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
}

#[async_trait]
impl ObjectStore for PlainFiles {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.check(at, Touch::Rename).await?;
        self.inner.put_opts(at, in_small_parts(&body), how).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check(at, Touch::Rename).await?;
        self.inner.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.check(at, Touch::Open).await?;
        self.inner.get_opts(at, how).await
    }

    fn delete_stream(
        &self,
        objects: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let root = Arc::clone(&self.root);
        let checked =
            objects.and_then(move |object| {
                let root = Arc::clone(&root);
                async move {
                    blocking(move || check(&root, &object, Touch::Rename).map(|()| object)).await
                }
            });
        self.inner.delete_stream(checked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let mut base = PathBuf::clone(&self.root);
        base.extend(prefix.parts().map(|part| part.as_ref().to_owned()));
        let root = Arc::clone(&self.root);
        // A directory at a time, and none before it is wanted.
        let directories = stream::try_unfold(vec![base], move |mut pending| {
            let (root, prefix) = (Arc::clone(&root), prefix.clone());
            async move {
                let Some(dir) = pending.pop() else { return Ok(None) };
                let look = move || {
                    check(&root, &prefix, Touch::Open)?;
                    entries(&root, &dir)
                };
                let (objects, below) = blocking(look).await?;
                pending.extend(below);
                Ok::<_, Error>(Some((stream::iter(objects.into_iter().map(Ok)), pending)))
            }
        });
        directories.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.check(&prefix.cloned().unwrap_or_default(), Touch::Open).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.check(from, Touch::Open).await?;
        self.check(to, Touch::Rename).await?;
        self.inner.copy_opts(from, to, how).await
    }
}
