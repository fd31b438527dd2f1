//! An upload of a long file whose API is killed in the middle, so that its parts are left in the object store.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::rig::{API_KEY, Rig};

/// The length of the file. The API uploads parts of 5 MiB.
const BYTES: usize = 16 << 20;
/// The bytes that are sent before the API is killed: one part, and some of the next.
const SENT: usize = 6 << 20;
/// The longest time until the first part is stored.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// The beginning of the body.
const FORM: &str = "--part\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n\
    --part\r\ncontent-disposition: form-data; name=\"file\"; filename=\"long.bin\"\r\n\
    content-type: application/octet-stream\r\n\r\n";

/// Begins to upload a file, and kills the API once a part is stored; returns whether the API ran.
pub(crate) async fn cut_off(rig: &mut Rig) -> Result<bool> {
    let before = parts(&rig.objects())?;
    // The connection stays open until the API is dead. Other faults may refuse it.
    let upload = begin(rig).await;
    let begun = Instant::now();
    while upload.is_ok() && parts(&rig.objects())? <= before && begun.elapsed() < STORED_WITHIN {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.api.kill()
}

async fn begin(rig: &Rig) -> Result<TcpStream> {
    let address = rig.url.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {API_KEY}\r\ncontent-length: {BYTES}\r\n\
         content-type: multipart/form-data; boundary=part\r\n\r\n{FORM}"
    );
    let sent = async {
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(&vec![7; SENT]).await
    };
    tokio::time::timeout(STORED_WITHIN, sent).await??;
    Ok(socket)
}

/// Returns the number of stored parts of unfinished uploads; `s3s-fs` names their files so.
fn parts(objects: &Path) -> Result<usize> {
    let names = fs::read_dir(objects)?.flatten().map(|entry| entry.file_name());
    Ok(names.filter(|name| name.to_string_lossy().starts_with(".upload_id-")).count())
}
