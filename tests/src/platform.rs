//! A whole platform: `attune up` on its own data folder, used by the `attune` command line and by HTTP.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// The longest start of a platform; a first start creates a PostgreSQL cluster.
const START: Duration = Duration::from_secs(120);
/// The longest stop of a process.
const STOP: Duration = Duration::from_secs(60);

/// A running platform, stopped on drop.
pub struct Platform {
    up: Child,
    folder: Folder,
    /// The API's address, `http://127.0.0.1:…`.
    pub url: String,
    /// An API key of the project `default`.
    pub api_key: String,
}

/// The folder with a platform's data. It outlives the platform, so that another one can be started on it.
pub struct Folder {
    root: TempDir,
}

impl Folder {
    /// Creates a temporary folder.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new() -> Result<Self> {
        Ok(Self { root: tempfile::Builder::new().prefix("attune-test-").tempdir()? })
    }

    /// Returns the data folder for `attune up`.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// Returns a path next to the data folder, for the test's own files.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Returns the platform's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("up.log")).unwrap_or_default()
    }
}

/// Returns the path of a program of the workspace, from the folder of the test's own program.
///
/// # Errors
/// The program is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("the test program is in target/…/deps")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built: run `make build`", path.display());
    Ok(path)
}

impl Platform {
    /// Starts a platform on a new folder.
    ///
    /// # Errors
    /// The platform does not start; the message has its log.
    pub fn start() -> Result<Self> {
        Self::start_on(Folder::new()?)
    }

    /// Starts a platform on a new folder, with a settings file.
    ///
    /// # Errors
    /// The platform does not start; the message has its log.
    pub fn start_with(settings: &str) -> Result<Self> {
        let folder = Folder::new()?;
        fs::write(folder.path("settings.toml"), settings)?;
        Self::start_on(folder)
    }

    /// Starts a platform on a folder that may have the data of an earlier one.
    ///
    /// # Errors
    /// The platform does not start; the message has its log.
    pub fn start_on(folder: Folder) -> Result<Self> {
        Self::start_in(folder, &[])
    }

    /// Starts a platform on a folder, with additional environment variables.
    ///
    /// # Errors
    /// The platform does not start; the message has its log.
    pub fn start_in(folder: Folder, variables: &[(&str, &str)]) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(folder.path("up.log"))?;
        let credentials = folder.data().join("credentials.json");
        let _ = fs::remove_file(&credentials); // written again when the platform is ready
        let mut command = Command::new(program("attune")?);
        command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(folder.data());
        command.envs(variables.iter().copied());
        let settings = folder.path("settings.toml");
        if settings.exists() {
            command.arg("--config").arg(settings);
        }
        let mut up = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let begun = Instant::now();
        let (url, api_key) = loop {
            if let Some(found) = read_credentials(&credentials).filter(|(url, _)| healthy(url)) {
                break found;
            }
            if let Some(status) = up.try_wait()? {
                bail!("attune up exited with {status}:\n{}", folder.log());
            }
            if begun.elapsed() > START {
                end(&mut up, Signal::SIGKILL)?;
                bail!("attune up is not ready after {START:?}:\n{}", folder.log());
            }
            thread::sleep(Duration::from_millis(100));
        };
        Ok(Self { up, folder, url, api_key })
    }

    /// Returns the platform's folder.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Returns the ID of the `attune up` process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.up.id()
    }

    /// Runs `attune` with these arguments.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn attune(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(program("attune")?)
            .args(arguments)
            .env("ATTUNE_API_URL", &self.url)
            .env("ATTUNE_API_KEY", &self.api_key)
            .stdin(Stdio::null())
            .output()?)
    }

    /// Runs `attune … --json` and parses its output.
    ///
    /// # Errors
    /// The command fails, or does not print JSON; the message has its output.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.attune(&[arguments, &["--json"]].concat())?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "attune {arguments:?}: {}\n{stderr}\n{stdout}\n{}",
            output.status,
            self.folder.log()
        );
        serde_json::from_str(&stdout).with_context(|| format!("attune {arguments:?} printed: {stdout}"))
    }

    /// Runs a program that reads the platform's address and key from the environment, as the official clients do;
    /// returns its output.
    ///
    /// # Errors
    /// The program fails; the message has its output and the platform's log.
    pub fn run_client(&self, program: &mut Command) -> Result<String> {
        let output =
            program.env("OPENAI_BASE_URL", format!("{}/v1", self.url)).env("OPENAI_API_KEY", &self.api_key).output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{said}\n{}", self.folder.log());
        Ok(said)
    }

    /// Imports the tiny model as `tiny`.
    ///
    /// # Errors
    /// The import fails.
    pub fn import_tiny(&self) -> Result<()> {
        let folder = self.folder.path("tiny");
        crate::tiny::write(&folder, 7)?;
        self.json(&["models", "import", text(&folder)?, "--name", "tiny"])?;
        Ok(())
    }

    /// Imports the tiny model whose template supports tools, as `tiny-tools`.
    ///
    /// # Errors
    /// The import fails.
    pub fn import_tiny_with_tools(&self) -> Result<()> {
        let folder = self.folder.path("tiny-tools");
        crate::tiny::write_with_tools(&folder, 7)?;
        self.json(&["models", "import", text(&folder)?, "--name", "tiny-tools"])?;
        Ok(())
    }

    /// Uploads rows as a training file, and returns its ID.
    ///
    /// # Errors
    /// The upload fails.
    pub fn upload(&self, rows: &str) -> Result<String> {
        let path = self.folder.path("rows.jsonl");
        fs::write(&path, rows)?;
        let file = self.json(&["files", "upload", text(&path)?])?;
        Ok(file["id"].as_str().context("a file has an id")?.to_owned())
    }

    /// Sends a request; returns the status and the body (null if it is empty).
    ///
    /// # Errors
    /// The connection fails, or the body is not JSON.
    pub async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        call(method, format!("{}{path}", self.url), &self.api_key, body).await
    }

    /// Waits until the job has ended, and returns it.
    ///
    /// # Errors
    /// The job does not end in time; the message has the platform's log.
    pub async fn ended(&self, job: &str, within: Duration) -> Result<Value> {
        self.job_until(job, within, |job| {
            ["succeeded", "failed", "cancelled"].contains(&job["status"].as_str().unwrap_or(""))
        })
        .await
    }

    /// Waits until `wanted` returns true for the job, and returns the job.
    ///
    /// # Errors
    /// The time is over first; the message has the platform's log.
    pub async fn job_until(&self, job: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let (status, view) = self.call(reqwest::Method::GET, &format!("/v1/fine_tuning/jobs/{job}"), None).await?;
            ensure!(status == 200, "{view}");
            if wanted(&view) {
                return Ok(view);
            }
            ensure!(begun.elapsed() < within, "the job is still {view}\n{}", self.folder.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Returns the IDs and the command lines of all descendants of the `attune up` process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn descendants(&self) -> Result<Vec<(i32, String)>> {
        descendants(self.up.id() as i32)
    }

    /// Stops the platform with a signal, as Ctrl-C or an init system would, and returns its folder.
    ///
    /// # Errors
    /// The process does not exit in time, exits with an error, or leaves a child process running.
    pub fn stop(mut self, signal: Signal) -> Result<Folder> {
        let children = self.descendants()?;
        let status = end(&mut self.up, signal)?;
        ensure!(
            signal == Signal::SIGKILL || status.success(),
            "attune up exited with {status}:\n{}",
            self.folder.log()
        );
        gone(&children)?;
        let empty = Folder::new()?;
        Ok(std::mem::replace(&mut self.folder, empty))
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if matches!(self.up.try_wait(), Ok(None)) {
            let _ = end(&mut self.up, Signal::SIGTERM);
        }
    }
}

/// Returns the HTTP client of the tests.
#[must_use]
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Sends a request with an API key; returns the status and the body (null if it is empty).
///
/// # Errors
/// The connection fails, or the body is not JSON.
pub async fn call(method: reqwest::Method, url: String, api_key: &str, body: Option<Value>) -> Result<(u16, Value)> {
    let mut request = client().request(method, url).bearer_auth(api_key);
    if let Some(body) = body {
        request = request.json(&body);
    }
    answer(request.send().await?).await
}

/// Reads a response; returns the status and the body (null if it is empty).
///
/// # Errors
/// The connection fails, or the body is not JSON.
pub async fn answer(response: reqwest::Response) -> Result<(u16, Value)> {
    let status = response.status().as_u16();
    let bytes = response.bytes().await?;
    Ok((status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? }))
}

/// Returns a path as an argument.
///
/// # Errors
/// The path is not UTF-8.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the test's folder has a UTF-8 name")
}

fn read_credentials(path: &Path) -> Option<(String, String)> {
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some((value["url"].as_str()?.to_owned(), value["api_key"].as_str()?.to_owned()))
}

/// Returns whether `GET /healthz` succeeds; over a plain socket, so that it works outside of any async runtime.
fn healthy(url: &str) -> bool {
    use std::io::{Read, Write};
    let Some(address) = url.strip_prefix("http://") else { return false };
    let Ok(mut socket) = std::net::TcpStream::connect(address) else { return false };
    let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    socket.write_all(request.as_bytes()).is_ok()
        && socket.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

fn end(process: &mut Child, signal: Signal) -> Result<ExitStatus> {
    kill(Pid::from_raw(process.id() as i32), signal)?;
    let begun = Instant::now();
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > STOP {
            process.kill()?;
            process.wait()?;
            bail!("the process did not exit within {STOP:?} of {signal}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until none of these processes runs.
///
/// # Errors
/// A process still runs after ten seconds.
pub fn gone(processes: &[(i32, String)]) -> Result<()> {
    let begun = Instant::now();
    loop {
        // The command line is compared too, since the process ID may have been reused.
        let left: Vec<_> =
            processes.iter().filter(|(id, command)| command_line(*id).as_ref() == Some(command)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "still running: {left:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn command_line(id: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).ok().filter(|bytes| !bytes.is_empty())?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

fn descendants(root: i32) -> Result<Vec<(i32, String)>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        // The name in parentheses may contain spaces; the parent's ID is the second field after it.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parents.extend(parent.map(|parent| (id, parent)));
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let of = found[next];
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(id, _)| *id));
        next += 1;
    }
    Ok(found[1..].iter().filter_map(|id| Some((*id, command_line(*id)?))).collect())
}
