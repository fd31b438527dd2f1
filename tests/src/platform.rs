//! A whole platform: `attune up` in a folder of its own, driven by the `attune` command line and by HTTP.

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

/// How long a whole platform may take to come up: a first start creates a PostgreSQL cluster.
const START: Duration = Duration::from_secs(120);
/// How long it may take to leave.
const STOP: Duration = Duration::from_secs(60);

/// A running platform. Ends with the test, by its process id.
pub struct Platform {
    up: Child,
    folder: Folder,
    /// `http://127.0.0.1:…`
    pub url: String,
    /// A key of the project `default`.
    pub api_key: String,
}

/// Where a platform keeps everything. Outlives the platform, so that a second one can be started on it.
pub struct Folder {
    root: TempDir,
}

impl Folder {
    /// A new one.
    ///
    /// # Errors
    /// The disk's.
    pub fn new() -> Result<Self> {
        Ok(Self { root: tempfile::Builder::new().prefix("attune-test-").tempdir()? })
    }

    /// The data folder for `attune up`.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A place beside it for the test's own files.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What the platform has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("up.log")).unwrap_or_default()
    }
}

/// A program of the workspace; it lies beside the test's own.
///
/// # Errors
/// It was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("the test program lies in target/…/deps")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built: run `make build`", path.display());
    Ok(path)
}

impl Platform {
    /// A platform on a new folder.
    ///
    /// # Errors
    /// It does not come up; the message holds its log.
    pub fn start() -> Result<Self> {
        Self::start_on(Folder::new()?)
    }

    /// A platform on a new folder, with a settings file.
    ///
    /// # Errors
    /// It does not come up; the message holds its log.
    pub fn start_with(settings: &str) -> Result<Self> {
        let folder = Folder::new()?;
        fs::write(folder.path("settings.toml"), settings)?;
        Self::start_on(folder)
    }

    /// A platform on a folder that may hold an earlier one's data.
    ///
    /// # Errors
    /// It does not come up; the message holds its log.
    pub fn start_on(folder: Folder) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(folder.path("up.log"))?;
        let credentials = folder.data().join("credentials.json");
        let _ = fs::remove_file(&credentials); // written anew when the platform is ready
        let mut command = Command::new(program("attune")?);
        command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(folder.data());
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
                bail!("attune up left with {status}:\n{}", folder.log());
            }
            if begun.elapsed() > START {
                end(&mut up, Signal::SIGKILL)?;
                bail!("attune up is not ready after {START:?}:\n{}", folder.log());
            }
            thread::sleep(Duration::from_millis(100));
        };
        Ok(Self { up, folder, url, api_key })
    }

    /// Where it lies.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The id of the `attune up` process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.up.id()
    }

    /// Runs `attune` with these arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn attune(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(program("attune")?)
            .args(arguments)
            .env("ATTUNE_API_URL", &self.url)
            .env("ATTUNE_API_KEY", &self.api_key)
            .stdin(Stdio::null())
            .output()?)
    }

    /// Runs `attune … --json` and reads what it prints.
    ///
    /// # Errors
    /// It fails, or prints no JSON; the message holds what it said.
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

    /// Runs a program that finds this platform in its environment, as the official clients do; gives what it printed.
    ///
    /// # Errors
    /// It fails; the message holds what it said, and the platform's log.
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
    /// The import's.
    pub fn import_tiny(&self) -> Result<()> {
        let folder = self.folder.path("tiny");
        crate::tiny::write(&folder, 7)?;
        self.json(&["models", "import", text(&folder)?, "--name", "tiny"])?;
        Ok(())
    }

    /// Imports the tiny model whose template knows tools, as `tiny-tools`.
    ///
    /// # Errors
    /// The import's.
    pub fn import_tiny_with_tools(&self) -> Result<()> {
        let folder = self.folder.path("tiny-tools");
        crate::tiny::write_with_tools(&folder, 7)?;
        self.json(&["models", "import", text(&folder)?, "--name", "tiny-tools"])?;
        Ok(())
    }

    /// Uploads rows as a training file, and gives its id.
    ///
    /// # Errors
    /// The upload's.
    pub fn upload(&self, rows: &str) -> Result<String> {
        let path = self.folder.path("rows.jsonl");
        fs::write(&path, rows)?;
        let file = self.json(&["files", "upload", text(&path)?])?;
        Ok(file["id"].as_str().context("a file has an id")?.to_owned())
    }

    /// One request; gives status and body (null if it is empty).
    ///
    /// # Errors
    /// The network's, or the body is not JSON.
    pub async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let mut request = client().request(method, format!("{}{path}", self.url)).bearer_auth(&self.api_key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await?;
        let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        Ok((status, value))
    }

    /// Waits until the job has ended, and gives it.
    ///
    /// # Errors
    /// It does not end in time; the message holds the platform's log.
    pub async fn ended(&self, job: &str, within: Duration) -> Result<Value> {
        self.job_until(job, within, |job| {
            ["succeeded", "failed", "cancelled"].contains(&job["status"].as_str().unwrap_or(""))
        })
        .await
    }

    /// Waits until `wanted` holds of the job, and gives it.
    ///
    /// # Errors
    /// It does not come to hold in time; the message holds the platform's log.
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

    /// Every process below `attune up`, itself left out, with its command line.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn descendants(&self) -> Result<Vec<(i32, String)>> {
        descendants(self.up.id() as i32)
    }

    /// Ends it as Ctrl-C or an init system would, and gives its folder back.
    ///
    /// # Errors
    /// It does not leave in time, leaves with an error, or leaves a child behind.
    pub fn stop(mut self, signal: Signal) -> Result<Folder> {
        let children = self.descendants()?;
        let status = end(&mut self.up, signal)?;
        ensure!(signal == Signal::SIGKILL || status.success(), "attune up left with {status}:\n{}", self.folder.log());
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

/// The one HTTP client of the tests.
#[must_use]
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// A path as an argument.
///
/// # Errors
/// It is not UTF-8.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the test's folder has a UTF-8 name")
}

fn read_credentials(path: &Path) -> Option<(String, String)> {
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some((value["url"].as_str()?.to_owned(), value["api_key"].as_str()?.to_owned()))
}

/// A plain socket, so that the harness can wait outside of any runtime.
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
            bail!("the process did not leave within {STOP:?} of {signal}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until none of these processes is left.
///
/// # Errors
/// One is, after ten seconds.
pub fn gone(processes: &[(i32, String)]) -> Result<()> {
    let begun = Instant::now();
    loop {
        // The command line is compared too: the number may have been given to another process by now.
        let left: Vec<_> =
            processes.iter().filter(|(id, command)| command_line(*id).as_ref() == Some(command)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "left behind: {left:?}");
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
        // The name in parentheses may hold spaces; the parent is the second field after it.
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
