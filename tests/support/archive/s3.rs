//! An S3 endpoint in this process: real HTTP and real signatures over a temporary directory.
//!
//! What must stay true: whoever asks has signed with the credentials of this endpoint, or is refused;
//! it answers as long as it lives and is gone, with its objects, when it is dropped. Conditions are
//! those of `s3s-fs`: a put that must not overwrite is refused one time after the other and races with
//! others; [`S3::ignoring_conditions`] makes it one of those servers that never refuse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ClientOptions, RetryConfig};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::dto::PutObjectInput;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Request, S3Result, s3_error};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The one bucket.
pub const BUCKET: &str = "backups";
/// Made up, and nobody else's.
pub const ACCESS_KEY: &str = "AKESKERTESTS";
/// To be found in no message.
pub const SECRET_KEY: &str = "secret-key-of-the-tests-of-esker";

/// The endpoint; it stops when it is dropped.
pub struct S3 {
    address: SocketAddr,
    directory: TempDir,
    runtime: Option<Runtime>,
}

/// What the credentials may do, and what is done with conditions.
struct Access {
    ignores_conditions: bool,
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        match context.credentials() {
            Some(_) => Ok(()),
            None => Err(s3_error!(AccessDenied, "a request without a signature")),
        }
    }

    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        if self.ignores_conditions {
            request.input.if_match = None;
            request.input.if_none_match = None;
        }
        Ok(())
    }
}

impl S3 {
    /// With an empty bucket.
    pub fn start() -> Self {
        Self::with(Access { ignores_conditions: false })
    }

    /// One that overwrites whatever is there, though it was asked not to.
    pub fn ignoring_conditions() -> Self {
        Self::with(Access { ignores_conditions: true })
    }

    fn with(access: Access) -> Self {
        crate::files::temporary_in_memory();
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join(BUCKET)).expect("a bucket");
        let files = s3s_fs::FileSystem::new(directory.path()).expect("a directory");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        service.set_access(access);
        let service = service.build();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("s3").enable_all().build();
        let runtime = runtime.expect("a thread");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // Only slower if it fails.
                let _ = socket.set_nodelay(true);
                let http = hyper::server::conn::http1::Builder::new();
                let serving = http.serve_connection(TokioIo::new(socket), service.clone());
                // Whatever ends a connection, its client sees it.
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        Self { address, directory, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the objects are, as files.
    pub fn objects(&self) -> PathBuf {
        self.directory.path().join(BUCKET)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// A client of the endpoint that is reached at this URL. It does not try again by itself, so that what
/// is seen is how the archive does, and it waits `timeout` for an answer. Without `kept` connections each
/// request has its own, so that one that was cut is nobody else's trouble.
pub fn client(url: &str, timeout: Duration, kept: bool) -> Arc<AmazonS3> {
    let options = ClientOptions::new()
        .with_pool_max_idle_per_host(if kept { usize::MAX } else { 0 })
        .with_allow_http(true)
        .with_connect_timeout(timeout)
        .with_timeout(timeout);
    let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let client = AmazonS3Builder::new()
        .with_endpoint(url)
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_virtual_hosted_style_request(false)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_client_options(options)
        .with_retry(once)
        .build();
    Arc::new(client.expect("all that a client needs"))
}
