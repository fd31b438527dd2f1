//! An S3 server over a folder, in the test's own process.

use std::path::Path;

use anyhow::Result;
use attune_bucket::Bucket;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};

/// The server's access key ID and its secret access key.
pub const CREDENTIALS: (&str, &str) = ("key", "secret");

/// Starts a server on a free port, which runs until the test's runtime ends. Returns its address, `http://…`.
///
/// # Errors
/// The folder cannot be served, or no port is free.
pub async fn serve(folder: &Path) -> Result<String> {
    let mut service = S3ServiceBuilder::new(Bucket::open(folder)?);
    service.set_auth(SimpleAuth::from_single(CREDENTIALS.0, CREDENTIALS.1));
    let service = service.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let builder = Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    Ok(address)
}
