//! The parsing of a dataset in a child process under limits, and the storage of the rows that it returns. A hostile
//! file can only end the child, which is reported here as an error.
//!
//! Memory: one part of the object store's multipart upload, and a few small buffers.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, process::Stdio, time::Duration};

use attune_dataset::contract::{Found, Orders, Verdict};
use attune_domain::{dataset::Defects, id::ProjectId};
use attune_store::{
    error::StoreError,
    files::{
        objects::{Objects, upload_key},
        staging::{Arrived, Incoming, Staged},
    },
};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::Notify,
    time::timeout,
};

use crate::{app::App, config::Limits, error::ApiError};

/// The API's command-line argument that starts it as the child.
pub const ARGUMENT: &str = "read-dataset";

/// The time limit for the child to accept the next chunk of the file, and to exit after its answer.
const STALL: Duration = Duration::from_secs(60);

/// The maximum length of the child's answer, in bytes.
const ANSWER_BYTES: u64 = 1 << 20;

/// The size of the buffer for rows, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// A valid dataset, and its rows as trainers read them, if their content differs from the file's.
pub struct Read {
    /// The properties of the dataset.
    pub found: Found,
    /// The rows, staged in the object store.
    pub rows: Option<(Staged, Arrived)>,
}

/// Parses the project's object under `key`, which its user named `filename`.
///
/// # Errors
/// [`ApiError::Invalid`] for `file`: it cannot be parsed, or not within the limits, or its rows are invalid.
/// [`ApiError::BadRows`], [`ApiError::StorageRefused`], [`ApiError::Internal`].
pub async fn read(app: &App, project: ProjectId, key: &str, filename: &str) -> Result<Read, ApiError> {
    let _place = app.parsers.wait(project).await?;
    let mut child = start(&app.limits, filename)?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(ApiError::internal("the child has no streams"));
    };
    let end_of_file = Notify::new();
    let feed = async {
        let fed = feed(&app.objects, key, stdin).await?;
        end_of_file.notify_one();
        Ok::<_, ApiError>(fed)
    };
    let work = async { tokio::try_join!(feed, keep(app, stdout), answer(stderr)) };
    let (fed, rows, said) = tokio::select! {
        done = work => done?,
        late = overdue(&end_of_file, &app.limits) => return Err(late),
    };
    let status = ended(&mut child).await?;
    let verdict = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    match verdict.filter(|_| status.success()) {
        Some(Verdict::Sound(found)) if fed => Ok(Read { rows: rows.filter(|_| found.rewritten), found }),
        Some(Verdict::Sound(_)) => Err(ApiError::internal("the child exited before the end of the file")),
        Some(Verdict::Defects { by_rows: false, defects }) => Err(defects.into()),
        Some(Verdict::Defects { by_rows: true, defects }) => Err(unsound(&defects)),
        Some(Verdict::Refused { reason }) => Err(unreadable(&reason)),
        None => Err(broken(status, &said, &app.limits)),
    }
}

fn start(limits: &Limits, filename: &str) -> Result<Child, ApiError> {
    let orders = Orders {
        filename: filename.to_owned(),
        memory_bytes: limits.parser_memory_bytes,
        cpu_seconds: limits.parser_cpu_seconds,
        file_bytes: limits.file_bytes,
        rows_bytes: limits.rows_bytes,
    };
    let program = std::env::current_exe().map_err(ApiError::internal)?;
    let mut command = Command::new(program);
    // The child inherits no environment variables: a process that parses untrusted files must not have their secrets.
    command.arg(ARGUMENT).arg(serde_json::to_string(&orders).map_err(ApiError::internal)?).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().map_err(ApiError::internal)
}

/// Writes the file to the child, and returns whether the child read all of it. A child that has read enough exits
/// early.
async fn feed(objects: &Objects, key: &str, mut stdin: ChildStdin) -> Result<bool, ApiError> {
    let mut body = objects.get(key).await?;
    loop {
        let piece = body.try_next().await.map_err(|cause| StoreError::object("get", key, cause))?;
        let Some(piece) = piece else { return Ok(true) };
        match timeout(STALL, stdin.write_all(&piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(false),
            Err(_) => return Err(unreadable(&format!("parsing stalled for {} s", STALL.as_secs()))),
        }
    }
}

/// Stores the rows; returns `None` if there were none.
async fn keep(app: &App, mut stdout: impl AsyncRead + Unpin) -> Result<Option<(Staged, Arrived)>, ApiError> {
    let key = upload_key();
    let mut incoming = Incoming::begin(&app.objects, &key, "file's rows", app.limits.rows_bytes);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = stdout.read(&mut piece).await.map_err(ApiError::internal)?;
        if read == 0 {
            break;
        }
        incoming.write(&piece[..read]).await?;
    }
    if incoming.arrived().bytes.0 == 0 {
        return Ok(None);
    }
    Ok(Some(incoming.stage(&app.objects, key).await?))
}

/// Completes with an error once the child has had the whole file for four times its processor time limit.
async fn overdue(end_of_file: &Notify, limits: &Limits) -> ApiError {
    end_of_file.notified().await;
    let seconds = limits.parser_cpu_seconds * 4;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    unreadable(&format!("parsing takes more than {seconds} s"))
}

/// Reads the child's answer until the child closes its stream.
async fn answer(stderr: impl AsyncRead + Unpin) -> Result<String, ApiError> {
    let mut said = Vec::new();
    stderr.take(ANSWER_BYTES).read_to_end(&mut said).await.map_err(ApiError::internal)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

async fn ended(child: &mut Child) -> Result<ExitStatus, ApiError> {
    match timeout(STALL, child.wait()).await {
        Ok(status) => status.map_err(ApiError::internal),
        Err(_) => Err(ApiError::internal("the child does not exit")),
    }
}

/// Returns the error for a child that ended without an answer.
fn broken(status: ExitStatus, said: &str, limits: &Limits) -> ApiError {
    tracing::warn!(%status, said, "a dataset could not be parsed within the limits");
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    match signal {
        Some(Signal::SIGXCPU | Signal::SIGKILL) => {
            unreadable(&format!("parsing takes more than {} s of processor time", limits.parser_cpu_seconds))
        }
        Some(Signal::SIGXFSZ) => unreadable(&format!("it is larger than {} bytes", limits.file_bytes)),
        _ if said.contains("memory allocation") || said.contains("Cannot allocate memory") => {
            unreadable(&format!("parsing takes more than {} bytes of memory", limits.parser_memory_bytes))
        }
        _ => unreadable("the parser failed. The file may be damaged"),
    }
}

fn unreadable(reason: &str) -> ApiError {
    let message = format!("The file cannot be read: {reason}. Nothing was stored.");
    ApiError::Invalid { param: Some("file".into()), code: "invalid_file_format", message }
}

/// Returns the error for invalid rows as [`ApiError::BadRows`] does, for a file that does not consist of lines.
fn unsound(defects: &Defects) -> ApiError {
    let count = if defects.total == 1 { "1 defect".to_owned() } else { format!("{} defects", defects.total) };
    let mut rows: Vec<String> =
        defects.first.iter().map(|defect| format!("row {}: {}", defect.line, defect.message)).collect();
    match defects.total - defects.first.len() as u64 {
        0 => {}
        more => rows.push(format!("… and {more} more")),
    }
    let message = format!("Invalid file format: {count}. Nothing was stored.\n{}", rows.join("\n"));
    ApiError::Invalid { param: Some("file".into()), code: "invalid_file_format", message }
}
