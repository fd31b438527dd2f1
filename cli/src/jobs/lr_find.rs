//! `attune lr-find`: creates a job whose learning rate is `auto`. Before the first step, its trainer tests rates and
//! reports the chosen one and the reason; then the job is cancelled.

use std::time::Instant;

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    create::{self, NewJobArgs},
    watch,
};
use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// The width of the loss curve, in characters.
const CURVE_WIDTH: usize = 60;
/// The maximum number of rows of the table.
const ROWS: usize = 12;

/// The flags of `attune lr-find`: those of a job.
#[derive(Debug, clap::Args)]
pub(crate) struct LrFindArgs {
    #[command(flatten)]
    new: NewJobArgs,
}

/// The result of a trainer's range test.
#[derive(Debug, PartialEq)]
struct Found {
    learning_rate: f64,
    reason: String,
    /// The tested rates, each with its smoothed loss.
    curve: Vec<(f64, f64)>,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Usage`]: a learning rate is set. [`CliError::JobFailed`], [`CliError::JobCancelled`]: the job ended
/// first. Local errors, and those of the API.
pub(crate) async fn run(client: &Client, args: LrFindArgs, as_json: bool) -> Result<()> {
    let mut body = create::laid(args.new)?;
    ask_for_test(&mut body)?;
    let body = create::uploaded(client, body).await?;
    let job = client.json(client.request(Method::POST, &["fine_tuning", "jobs"]).json(&body)).await?;
    let id = output::text(&job["id"]);
    if !as_json {
        output::line(&format!("job {id} tests learning rates and is cancelled once it has chosen one"))?;
    }
    let found = tokio::select! {
        found = wait(client, &id) => found?,
        _ = tokio::signal::ctrl_c() => {
            cancel(client, &id).await?;
            return Err(CliError::JobCancelled(id));
        }
    };
    cancel(client, &id).await?;
    if as_json { output::json(&found.json(&id)) } else { found.show() }
}

/// Sets the job's learning rate to `auto`.
fn ask_for_test(body: &mut Map<String, Value>) -> Result<()> {
    let given = body.get("trainer").map(|trainer| &trainer["learning_rate"]);
    if given.is_some_and(|given| !given.is_null() && given != "auto") {
        let message =
            "learning_rate: lr-find chooses it. Remove --learning-rate, or 'trainer.learning_rate' from the file.";
        return Err(CliError::Usage(message.into()));
    }
    create::insert(body, &["trainer"], "learning_rate", "auto".into())
}

/// Polls the job until its events have the result of the range test, or until it has ended.
async fn wait(client: &Client, id: &str) -> Result<Found> {
    let mut answered: Option<Instant> = None;
    loop {
        match watch::look(client, id, answered.is_none()).await {
            Ok((job, events)) => {
                answered = Some(Instant::now());
                if let Some(found) = events["data"].as_array().into_iter().flatten().find_map(Found::in_event) {
                    return Ok(found);
                }
                ended(&job, id)?;
            }
            Err(CliError::Unreachable { .. }) if answered.is_some_and(|at| at.elapsed() < watch::AWAY) => {}
            Err(e) => return Err(e),
        }
        tokio::time::sleep(watch::EVERY).await;
    }
}

/// Returns an error if the job has ended, since it can no longer report a result.
fn ended(job: &Value, id: &str) -> Result<()> {
    let failed = |reason: &str| Err(CliError::JobFailed { id: id.to_owned(), reason: reason.to_owned() });
    match job["status"].as_str() {
        Some("failed") => failed(job["error"]["message"].as_str().unwrap_or("it reported no reason")),
        Some("cancelled") => Err(CliError::JobCancelled(id.to_owned())),
        Some("succeeded") => failed("it ended without reporting a learning rate"),
        _ => Ok(()),
    }
}

/// Cancels the job; a job that has ended in the meantime is not an error.
async fn cancel(client: &Client, id: &str) -> Result<()> {
    match client.json(client.request(Method::POST, &["fine_tuning", "jobs", id, "cancel"])).await {
        Err(CliError::Refused { body, .. }) if body["error"]["code"] == "job_has_ended" => Ok(()),
        answered => answered.map(drop),
    }
}

impl Found {
    fn in_event(event: &Value) -> Option<Self> {
        let data = &event["data"];
        let point = |point: &Value| Some((point[0].as_f64()?, point[1].as_f64()?));
        Some(Self {
            learning_rate: data["learning_rate"].as_f64()?,
            reason: output::text(&event["message"]),
            curve: data["curve"].as_array()?.iter().filter_map(point).collect(),
        })
    }

    fn json(&self, job: &str) -> Value {
        json!({"object": "learning_rate", "learning_rate": self.learning_rate, "reason": self.reason,
            "curve": self.curve, "fine_tuning_job": job})
    }

    fn show(&self) -> Result<()> {
        let losses: Vec<f64> = self.curve.iter().map(|(_, loss)| *loss).collect();
        let rows = self.picked().map(|(rate, loss)| vec![format!("{rate:.1e}"), format!("{loss:.4}")]);
        output::table(&["RATE", "LOSS"], rows.collect(), "The test reported no rates.")?;
        if let (Some((first, _)), Some((last, _))) = (self.curve.first(), self.curve.last()) {
            let line = output::sparkline(&losses, CURVE_WIDTH);
            output::line(&format!("\n{line}  loss from {first:.1e} to {last:.1e}"))?;
        }
        output::line(&format!("\n{}\n\nlearning rate  {:e}", self.reason, self.learning_rate))
    }

    /// Returns at most [`ROWS`] of the points, evenly spaced, with the last one included.
    fn picked(&self) -> impl Iterator<Item = &(f64, f64)> {
        let every = self.curve.len().div_ceil(ROWS).max(1);
        let last = self.curve.len().saturating_sub(1);
        self.curve.iter().enumerate().filter(move |(i, _)| (last - i).is_multiple_of(every)).map(|(_, point)| point)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use clap::Parser;
    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
        net::TcpListener,
    };

    use super::*;
    use crate::connection::credentials::Credentials;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: LrFindArgs,
    }

    /// Starts an API with one job. The first request for the job's events returns none, later ones return `event`; all
    /// requests are recorded.
    async fn api(status: Value, event: Value) -> (Client, Arc<Mutex<Vec<(String, Value)>>>) {
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (path, body) = request(&mut stream).await;
                let answer = answer(&kept, (path, body), (&status, &event));
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                let whole = format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
                stream.write_all(whole.as_bytes()).await.unwrap();
            }
        });
        (Client::new(Credentials { url, api_key: "k".into() }).unwrap(), asked)
    }

    fn answer(kept: &Mutex<Vec<(String, Value)>>, asked: (String, Value), (status, event): (&Value, &Value)) -> String {
        let mut kept = kept.lock().unwrap();
        let looks = kept.iter().filter(|(path, _)| path.contains("/events")).count();
        let answer = match asked.0.as_str() {
            path if path.contains("/events") => {
                let events = if looks == 0 { json!([]) } else { json!([event]) };
                json!({"object": "list", "data": events, "has_more": false})
            }
            "POST /v1/fine_tuning/jobs" => json!({"id": "ftjob-1", "status": "validating_files"}),
            _ => status.clone(),
        };
        kept.push(asked);
        answer.to_string()
    }

    /// Reads a request; returns `POST /path` and the body.
    async fn request(stream: &mut tokio::net::TcpStream) -> (String, Value) {
        let mut reader = BufReader::new(stream);
        let (mut first, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).await.unwrap() == 0 {
                break;
            }
            if first.is_empty() {
                first = line.trim_end_matches(" HTTP/1.1\r\n").to_owned();
            }
            if let Some((name, value)) =
                line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().unwrap_or_else(|_| panic!("{name}: {value}"));
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await.unwrap();
        (first, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    fn args(more: &[&str]) -> LrFindArgs {
        let line = ["attune", "--model", "tiny", "--training-file", "file-0190"].iter().chain(more);
        Line::try_parse_from(line).unwrap_or_else(|refused| panic!("{refused}")).args
    }

    fn event() -> Value {
        json!({"id": "1", "type": "message", "message": "a tenth of the rate at the lowest loss",
            "data": {"learning_rate": 1e-4, "curve": [[1e-6, 3.0], [1e-3, 1.0], [1e-1, 9.0]]}})
    }

    #[tokio::test]
    async fn the_job_is_requested_with_a_test_and_cancelled_when_it_has_found() {
        let (client, asked) = api(json!({"id": "ftjob-1", "status": "running"}), event()).await;
        run(&client, args(&["--rank", "8"]), true).await.unwrap();
        let asked = asked.lock().unwrap().clone();
        let made = json!({"model": "tiny", "training_file": "file-0190", "adapter": {"rank": 8},
            "trainer": {"learning_rate": "auto"}});
        assert_eq!(asked[0], ("POST /v1/fine_tuning/jobs".to_owned(), made));
        assert_eq!(asked.last().unwrap().0, "POST /v1/fine_tuning/jobs/ftjob-1/cancel");
    }

    #[tokio::test]
    async fn a_job_that_fails_first_gives_its_error() {
        let failed = json!({"id": "ftjob-1", "status": "failed", "error": {"message": "line 3 is too long"}});
        let (client, _) = api(failed, json!({"id": "1", "type": "message", "message": "m", "data": null})).await;
        let error = run(&client, args(&[]), true).await.unwrap_err();
        assert_eq!((error.exit_code(), error.to_string()), (6, "job ftjob-1 failed: line 3 is too long".to_owned()));
    }

    #[test]
    fn a_learning_rate_that_is_given_leaves_nothing_to_find() {
        let mut body = create::laid(args(&["--learning-rate", "1e-4"]).new).unwrap();
        assert_eq!(ask_for_test(&mut body).unwrap_err().exit_code(), 2);
        let mut body = create::laid(args(&["--learning-rate", "auto"]).new).unwrap();
        ask_for_test(&mut body).unwrap();
    }

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_end() {
        let curve: Vec<_> = (0..41).map(|i| (f64::from(i), 0.0)).collect();
        let found = Found { learning_rate: 1.0, reason: String::new(), curve };
        let picked: Vec<_> = found.picked().map(|(rate, _)| *rate as u32).collect();
        assert_eq!(picked, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]);
        let read = Found::in_event(&event()).unwrap();
        assert_eq!((read.learning_rate, read.curve.len()), (1e-4, 3));
        assert_eq!(read.json("ftjob-1")["curve"][1], json!([1e-3, 1.0]));
    }
}
