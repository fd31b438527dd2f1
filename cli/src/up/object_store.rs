//! The embedded S3 server: serves a folder on a loopback port of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use attune_bucket::Bucket;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use nix::sys::statvfs::statvfs;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tower::util::MapResponse;

use super::{
    private,
    secrets::Secrets,
    settings::{ObjectStore, default_bucket},
};
use crate::error::{Doing, Result};

/// The free space below which a server error is attributed to a full disk. Incomplete objects are removed before the
/// response, so that a few parts of 5 MiB may be free again by then.
const FULL_BELOW_BYTES: u64 = 32 << 20;

/// A running server.
pub(crate) struct Server {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// The address and the credentials.
    pub(crate) reach: ObjectStore,
}

impl Server {
    /// Serves `<data>/objects` on a free loopback port. The port changes with each start. This invalidates presigned
    /// URLs, but their holders exit with the platform anyway.
    ///
    /// # Errors
    /// [`CliError::Failed`](crate::error::CliError::Failed): the folder cannot be created, or no port is free.
    pub(crate) async fn start(data: &Path, secrets: &Secrets) -> Result<Self> {
        let root = data.join("objects");
        private::folder(&root)?;
        remove_unfinished_uploads(&root).doing(|| format!("clear {}", root.display()))?;
        let bucket = Bucket::open(&root).doing(|| format!("serve {}", root.display()))?;
        let mut service = S3ServiceBuilder::new(bucket);
        service.set_auth(SimpleAuth::from_single(
            secrets.object_store_access_key_id.as_str(),
            secrets.object_store_secret_access_key.as_str(),
        ));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.doing(|| "open a port for the object store".into())?;
        let address = listener.local_addr().doing(|| "read the object store's port".into())?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, service, root, stop.clone()));
        let reach = ObjectStore {
            endpoint: Some(format!("http://{address}")),
            region: "us-east-1".into(),
            bucket: default_bucket(),
            access_key_id: secrets.object_store_access_key_id.clone(),
            secret_access_key: secrets.object_store_secret_access_key.clone(),
            path_style: true,
        };
        Ok(Self { stop, task, reach })
    }

    /// Stops accepting connections, and waits up to 5 s for requests in progress.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        drop(tokio::time::timeout(Duration::from_secs(5), self.task).await);
    }
}

async fn serve(listener: TcpListener, service: s3s::service::S3Service, root: PathBuf, stop: CancellationToken) {
    let root: Arc<Path> = root.into();
    let service = MapResponse::new(service, move |answer| told_if_full(answer, &root));
    let service = TowerToHyperService::new(service);
    let builder = Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            // Too many open files: wait until some are closed.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let connection = builder.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move { drop(connection.await) });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Removes the parts of multipart uploads of an earlier server, which no caller can complete any more. Their files are
/// recognized by the library's naming scheme.
fn remove_unfinished_uploads(root: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_upload = name.starts_with(".upload_id-") || name.starts_with(".upload-");
        let is_metadata = name.starts_with(".bucket-") && name.contains(".upload-");
        if (is_upload || is_metadata) && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces a server error on a full disk by `InsufficientStorage`, as other S3 services return it; the library returns
/// an internal error that does not mention the disk.
fn told_if_full(answer: s3s::HttpResponse, root: &Path) -> s3s::HttpResponse {
    if !answer.status().is_server_error() {
        return answer;
    }
    match statvfs(root) {
        Ok(disk) if disk.blocks_available() * disk.fragment_size() < FULL_BELOW_BYTES => {
            let body = "<?xml version=\"1.0\"?><Error><Code>InsufficientStorage</Code>\
                <Message>The disk is full.</Message></Error>";
            let mut full = s3s::HttpResponse::new(body.to_owned().into());
            *full.status_mut() = http::StatusCode::INSUFFICIENT_STORAGE;
            full
        }
        _ => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_on_a_full_disk_is_one_of_the_disk() {
        let answer = |status| {
            let mut answer = s3s::HttpResponse::new(s3s::Body::empty());
            *answer.status_mut() = status;
            told_if_full(answer, Path::new("/proc")).status()
        };
        // /proc never has free space.
        assert_eq!(answer(http::StatusCode::INTERNAL_SERVER_ERROR), http::StatusCode::INSUFFICIENT_STORAGE);
        assert_eq!(answer(http::StatusCode::NOT_FOUND), http::StatusCode::NOT_FOUND);
    }
}
