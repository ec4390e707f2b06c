//! Objects with a clock that the test moves, and clients that each have faults of their own.
//!
//! What must stay true:
//! - An object is as old as the moved clock says; what a client is told wrongly never changes what is
//!   there. A fault hits one client, so two of them may meet, one calm and one not.
//! - Which requests fail follows from a seed, the kind of the request, its object and how often that
//!   came before, not from which thread was faster. Names that are drawn at random count as one.
//! - At most [`Faults::listings`] listings of a client lie: what is found by looking twice is not
//!   found when both looks are wrong in the same way.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many changes a stale listing lacks at most.
const STALE_CHANGES: usize = 12;
/// An object is fresh for so many requests.
const FRESH_REQUESTS: u64 = 4;
/// Who asks for the time more often than this waits for somebody.
const PROBES_OF_ONE_WORK: u64 = 4;
const WAITING_SECS: i64 = 120;

/// What all clients share.
pub struct Stage {
    inner: Arc<dyn ObjectStore>,
    /// Seconds that the clock is ahead.
    ahead: AtomicI64,
    /// How far it was when each object was written, and at which request.
    written: Mutex<HashMap<Path, (i64, u64)>>,
    /// The newest changes: an object that came, or one that went.
    changes: Mutex<VecDeque<Change>>,
    requests: AtomicU64,
}

enum Change {
    Came(Path),
    Went(ObjectMeta),
}

/// What goes wrong with a client's requests.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub seed: u64,
    /// One of so many requests fails in some way; none if 0.
    pub one_in: u64,
    /// So many listings may be stale or lack something.
    pub listings: u64,
    /// Objects that were written just now may be invisible to who asks for them by name.
    pub hides_fresh: bool,
    /// From this request on all fail: the process is gone.
    pub killed_at: Option<u64>,
}

/// What is done before a request.
pub type Hook = Box<dyn FnOnce() + Send>;

/// Before which request of a client something else happens.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The one of this number.
    Request(u64),
    /// The first that puts something below this root.
    Put(&'static str),
    /// The first that removes something below it.
    Delete(&'static str),
}

impl Moment {
    fn is_now(self, number: u64, kind: &str, object: &Path) -> bool {
        let is_of = |wanted: &str, root: &str| kind == wanted && object.as_ref().starts_with(root);
        match self {
            Self::Request(at) => at == number,
            Self::Put(root) => is_of("put", root),
            Self::Delete(root) => is_of("delete", root),
        }
    }
}

/// A connection to the stage.
pub struct Client(Arc<State>);

struct State {
    stage: Arc<Stage>,
    faults: Faults,
    requests: AtomicU64,
    seen: Mutex<HashMap<String, u64>>,
    lies: AtomicU64,
    probes: AtomicU64,
    hook: Mutex<Option<(Moment, Hook)>>,
    /// Called when this client waits for another; then its waiting does not move the clock.
    waits: Mutex<Option<Hook>>,
    is_patient: bool,
    /// Pieces that were read.
    read: Mutex<Vec<String>>,
    faults_met: AtomicU64,
    hidden: AtomicU64,
}

/// What becomes of a request that is not refused outright.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// It is done, and the answer is lost.
    Applied,
    /// The body ends early, as if it were whole.
    Short,
    /// The body breaks off.
    Broken,
    /// It is not done, and the answer says that it was. For pieces, which a push looks for again.
    Lost,
}

impl Stage {
    /// Over a store that nobody else uses.
    pub fn over(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            ahead: AtomicI64::new(0),
            written: Mutex::default(),
            changes: Mutex::default(),
            requests: AtomicU64::new(0),
        })
    }

    pub fn advance(&self, time: Duration) {
        self.ahead.fetch_add(time.as_secs() as i64, Ordering::SeqCst);
    }

    /// The moved clock, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        now.as_millis() as u64 + 1000 * self.ahead.load(Ordering::SeqCst) as u64
    }

    /// A client with these faults.
    pub fn client(self: &Arc<Self>, faults: Faults) -> Arc<Client> {
        self.build(faults, None, None)
    }

    /// One without faults.
    pub fn calm(self: &Arc<Self>) -> Arc<Client> {
        self.client(Faults::default())
    }

    /// One without faults that does this then.
    pub fn with_hook(
        self: &Arc<Self>,
        at: Moment,
        hook: impl FnOnce() + Send + 'static,
    ) -> Arc<Client> {
        self.build(Faults::default(), Some((at, Box::new(hook))), None)
    }

    /// One without faults that tells when it waits for somebody.
    pub fn that_tells(self: &Arc<Self>, waits: impl FnOnce() + Send + 'static) -> Arc<Client> {
        self.build(Faults::default(), None, Some(Box::new(waits)))
    }

    fn build(
        self: &Arc<Self>,
        faults: Faults,
        hook: Option<(Moment, Hook)>,
        waits: Option<Hook>,
    ) -> Arc<Client> {
        Arc::new(Client(Arc::new(State {
            stage: Arc::clone(self),
            lies: AtomicU64::new(faults.listings),
            faults,
            requests: AtomicU64::new(0),
            seen: Mutex::default(),
            probes: AtomicU64::new(0),
            is_patient: waits.is_some(),
            hook: Mutex::new(hook),
            waits: Mutex::new(waits),
            read: Mutex::default(),
            faults_met: AtomicU64::new(0),
            hidden: AtomicU64::new(0),
        })))
    }

    /// What is there, by name: without clients and their faults.
    pub fn objects(&self, below: &str) -> Vec<String> {
        let prefix = Path::from(below);
        let listed = block_on(self.inner.list(Some(&prefix)).try_collect::<Vec<_>>());
        let mut names: Vec<_> =
            listed.expect("list").into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort();
        names
    }

    /// An object's bytes, if it is there.
    pub fn bytes(&self, object: &str) -> Option<Vec<u8>> {
        let object = Path::from(object);
        let read = async { self.inner.get(&object).await?.bytes().await };
        block_on(read).ok().map(|bytes| bytes.to_vec())
    }

    /// Other bytes at the same place and of the same age; none removes it.
    pub fn damage(&self, object: &str, bytes: Option<Vec<u8>>) {
        let object = Path::from(object);
        let changed = async {
            match bytes {
                Some(bytes) => self.inner.put(&object, bytes.into()).await.map(|_| ()),
                None => self.inner.delete(&object).await,
            }
        };
        block_on(changed).expect("change an object");
    }

    /// How old an object is by the moved clock, in seconds, from when it was written.
    fn aged(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let written = self.written.lock().unwrap().get(&meta.location).map_or(0, |(secs, _)| *secs);
        meta.last_modified += Duration::from_secs(written as u64);
        meta
    }

    fn is_fresh(&self, object: &Path) -> bool {
        let now = self.requests.load(Ordering::SeqCst);
        let written = self.written.lock().unwrap().get(object).map(|(_, number)| *number);
        written.is_some_and(|number| now.saturating_sub(number) <= FRESH_REQUESTS)
    }

    fn note(&self, change: Change) {
        let mut changes = self.changes.lock().unwrap();
        changes.push_back(change);
        if changes.len() > STALE_CHANGES {
            changes.pop_front();
        }
    }

    async fn put(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        let is_new = self.inner.head(at).await.is_err();
        let put = self.inner.put_opts(at, body, how).await?;
        let ahead = self.ahead.load(Ordering::SeqCst);
        let number = self.requests.load(Ordering::SeqCst);
        self.written.lock().unwrap().insert(at.clone(), (ahead, number));
        if is_new {
            self.note(Change::Came(at.clone()));
        }
        Ok(put)
    }

    async fn delete(&self, at: &Path) -> Result<()> {
        if let Ok(meta) = self.inner.head(at).await {
            self.note(Change::Went(self.aged(meta)));
        }
        self.inner.delete(at).await
    }

    /// What was there so many changes ago.
    fn undone(&self, listed: &mut Vec<ObjectMeta>, prefix: Option<&Path>, count: usize) {
        for change in self.changes.lock().unwrap().iter().rev().take(count) {
            match change {
                Change::Came(path) => listed.retain(|meta| meta.location != *path),
                Change::Went(meta) => {
                    let is_below = prefix.is_none_or(|at| meta.location.prefix_matches(at));
                    if is_below && listed.iter().all(|known| known.location != meta.location) {
                        listed.push(meta.clone());
                    }
                }
            }
        }
    }
}

/// For what the stage does itself. Never from a request.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().expect("a runtime").block_on(work)
}

impl Client {
    /// How many requests it made.
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::SeqCst)
    }

    /// How many of them went wrong.
    pub fn faults_met(&self) -> u64 {
        self.0.faults_met.load(Ordering::SeqCst)
    }

    /// How often it was told that something is not there that is.
    pub fn hidden(&self) -> u64 {
        self.0.hidden.load(Ordering::SeqCst)
    }

    /// Whether its hook had its turn.
    pub fn was_met(&self) -> bool {
        self.0.hook.lock().unwrap().is_none()
    }

    /// The pieces that it asked for.
    pub fn pieces_read(&self) -> Vec<String> {
        self.0.read.lock().unwrap().clone()
    }
}

impl State {
    /// Counts the request and decides what becomes of it.
    fn decide(&self, kind: &str, object: &Path) -> Result<Option<Fault>> {
        self.stage.requests.fetch_add(1, Ordering::SeqCst);
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let hook = {
            let mut hook = self.hook.lock().unwrap();
            let is_now = hook.as_ref().is_some_and(|(at, _)| at.is_now(number, kind, object));
            if is_now { hook.take() } else { None }
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        if self.faults.killed_at.is_some_and(|at| number >= at) {
            self.faults_met.fetch_add(1, Ordering::SeqCst);
            // What was on its way may have arrived.
            let is_last = self.faults.killed_at == Some(number);
            if is_last && self.draw(kind, object).is_multiple_of(2) {
                return Ok(Some(Fault::Applied));
            }
            return Err(failed("the process is gone"));
        }
        if self.faults.one_in == 0 {
            return Ok(None);
        }
        let draw = self.draw(kind, object);
        if !draw.is_multiple_of(self.faults.one_in) {
            return Ok(None);
        }
        self.faults_met.fetch_add(1, Ordering::SeqCst);
        match draw / self.faults.one_in % 4 {
            0 if kind == "put" && object.as_ref().starts_with("files/") => Ok(Some(Fault::Lost)),
            0 | 1 => Err(failed("503 Slow Down")),
            2 if kind == "get" => Ok(Some(Fault::Short)),
            3 if kind == "get" => Ok(Some(Fault::Broken)),
            _ => Ok(Some(Fault::Applied)),
        }
    }

    /// From the seed, the request and how often it came.
    fn draw(&self, kind: &str, object: &Path) -> u64 {
        let root = object.parts().next().map(|part| part.as_ref().to_owned()).unwrap_or_default();
        let name = if root == "files" { object.to_string() } else { root };
        let request = format!("{kind} {name}");
        let mut seen = self.seen.lock().unwrap();
        let times = seen.entry(request.clone()).or_default();
        *times += 1;
        xxh3_64_with_seed(format!("{request} {times}").as_bytes(), self.faults.seed)
    }

    /// Whoever waits for somebody asks for the time again and again.
    fn note_probe(&self, object: &Path) {
        if !object.as_ref().contains("probes/") {
            return;
        }
        let probes = self.probes.fetch_add(1, Ordering::SeqCst) + 1;
        if probes <= PROBES_OF_ONE_WORK {
            return;
        }
        if let Some(tell) = self.waits.lock().unwrap().take() {
            tell();
        }
        if !self.is_patient {
            self.stage.ahead.fetch_add(WAITING_SECS, Ordering::SeqCst);
        }
    }

    /// Whether this listing is another one than what is there.
    fn lies(&self, prefix: &Path) -> Option<u64> {
        if self.faults.one_in == 0 || self.faults.listings == 0 {
            return None;
        }
        let draw = self.draw("lie", prefix);
        if !draw.is_multiple_of(3) {
            return None;
        }
        let take = |left: u64| left.checked_sub(1);
        self.lies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
        self.faults_met.fetch_add(1, Ordering::SeqCst);
        Some(draw / 3)
    }

    async fn listed(&self, prefix: Option<Path>) -> Result<Vec<ObjectMeta>> {
        let whole = Path::default();
        let fault = self.decide("list", prefix.as_ref().unwrap_or(&whole))?;
        let listed: Vec<_> = self.stage.inner.list(prefix.as_ref()).try_collect().await?;
        let mut listed: Vec<_> = listed.into_iter().map(|meta| self.stage.aged(meta)).collect();
        if fault.is_some() {
            return Err(failed("the listing broke off"));
        }
        if let Some(draw) = self.lies(prefix.as_ref().unwrap_or(&whole)) {
            if draw % 2 == 0 {
                self.stage.undone(
                    &mut listed,
                    prefix.as_ref(),
                    1 + (draw / 2) as usize % STALE_CHANGES,
                );
            } else if !listed.is_empty() {
                listed.remove((draw / 2) as usize % listed.len());
            }
        }
        Ok(listed)
    }
}

fn failed(what: &str) -> Error {
    Error::Generic { store: "stage", source: what.to_owned().into() }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stage")
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stage")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Client {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.0.note_probe(at);
        let fault = self.0.decide("put", at)?;
        if fault == Some(Fault::Lost) {
            return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
        }
        let put = self.0.stage.put(at, body, how).await?;
        if fault.is_some() {
            return Err(failed("no answer came"));
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let operation = "an upload of several parts".to_owned();
        Err(Error::NotImplemented { operation, implementer: "stage".to_owned() })
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        let is_head = how.head;
        let fault = self.0.decide(if is_head { "head" } else { "get" }, at)?;
        if self.0.faults.hides_fresh
            && self.0.stage.is_fresh(at)
            && self.0.draw("see", at).is_multiple_of(5)
        {
            self.0.hidden.fetch_add(1, Ordering::SeqCst);
            let source = "it cannot be seen yet".into();
            return Err(Error::NotFound { path: at.to_string(), source });
        }
        if !is_head && at.as_ref().starts_with("files/") {
            self.0.read.lock().unwrap().push(at.to_string());
        }
        let mut got = self.0.stage.inner.get_opts(at, how).await?;
        got.meta = self.0.stage.aged(got.meta);
        match fault {
            None => Ok(got),
            Some(Fault::Short | Fault::Broken) if !is_head => {
                let GetResult { ref meta, ref range, ref attributes, .. } = got;
                let (meta, range, attributes) = (meta.clone(), range.clone(), attributes.clone());
                let extensions = got.extensions.clone();
                let whole = got.bytes().await?;
                let cut = whole.slice(..whole.len() / 2);
                let mut parts = vec![Ok(cut)];
                if fault == Some(Fault::Broken) {
                    parts.push(Err(failed("the connection was reset")));
                }
                let payload = GetResultPayload::Stream(futures::stream::iter(parts).boxed());
                Ok(GetResult { payload, meta, range, attributes, extensions })
            }
            Some(_) => Err(failed("no answer came")),
        }
    }

    fn delete_stream(
        &self,
        objects: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let state = Arc::clone(&self.0);
        let each = objects.then(move |object| {
            let state = Arc::clone(&state);
            async move {
                let object = object?;
                let fault = state.decide("delete", &object)?;
                state.stage.delete(&object).await?;
                if fault.is_some() {
                    return Err(failed("no answer came"));
                }
                Ok(object)
            }
        });
        each.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (state, prefix) = (Arc::clone(&self.0), prefix.cloned());
        let listed = async move {
            match state.listed(prefix).await {
                Ok(listed) => futures::stream::iter(listed.into_iter().map(Ok)).boxed(),
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            }
        };
        futures::stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        let operation = "a listing of one level".to_owned();
        Err(Error::NotImplemented { operation, implementer: "stage".to_owned() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        let operation = "a copy".to_owned();
        Err(Error::NotImplemented { operation, implementer: "stage".to_owned() })
    }
}
