//! `attune jobs watch`: a progress bar and a loss curve on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::Value;

use super::{
    queue_line::queue_line,
    story::{Entry, Story},
};
use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// The interval between two polls.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// The longest time that the API may be unreachable, such as during a restart; the job continues in the meantime.
pub(super) const AWAY: Duration = Duration::from_secs(120);
/// The shortest interval between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The width of the loss curve, in characters.
const CURVE_WIDTH: usize = 60;

/// Watches the job until it ends, and returns its outcome.
///
/// # Errors
/// [`CliError::JobFailed`], [`CliError::JobCancelled`]; the API's errors; the API is unreachable for [`AWAY`].
pub(crate) async fn run(client: &Client, id: &str, as_json: bool) -> Result<()> {
    let mut screen = Screen::new(as_json);
    let ended = follow(client, id, &mut screen).await;
    screen.clear();
    let job = ended?;
    if as_json {
        output::json(&job)?;
    }
    match job["status"].as_str() {
        Some("succeeded") if as_json => Ok(()),
        Some("succeeded") => output::line(&format!("succeeded: {}", output::text(&job["fine_tuned_model"]))),
        Some("cancelled") => Err(CliError::JobCancelled(id.to_owned())),
        _ => {
            let reason = job["error"]["message"].as_str().unwrap_or("it reported no reason").to_owned();
            Err(CliError::JobFailed { id: id.to_owned(), reason })
        }
    }
}

async fn follow(client: &Client, id: &str, screen: &mut Screen) -> Result<Value> {
    let mut story = Story::default();
    let mut answered = Instant::now();
    let mut first = true;
    loop {
        match look(client, id, first).await {
            Ok((job, events)) => {
                (answered, first) = (Instant::now(), false);
                for event in events["data"].as_array().into_iter().flatten().rev() {
                    if let Some(entry) = story.take(event) {
                        screen.show(&entry);
                    }
                }
                story.total_steps = job["total_steps"].as_u64().unwrap_or(story.total_steps);
                screen.draw(&job, &story);
                if job["status"].as_str().is_some_and(|s| ["succeeded", "failed", "cancelled"].contains(&s)) {
                    return Ok(job);
                }
            }
            Err(CliError::Unreachable { .. }) if !first && answered.elapsed() < AWAY => screen.away(),
            Err(e) => return Err(e),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Retrieves the job and its events, all of them or the newest 100. The job is retrieved first, so that the events of a
/// job that has ended are complete.
pub(super) async fn look(client: &Client, id: &str, all: bool) -> Result<(Value, Value)> {
    let job = client.get(&["fine_tuning", "jobs", id]).await?;
    let events = ["fine_tuning", "jobs", id, "events"];
    let events = if all {
        client.list(&events, None).await?
    } else {
        client.json(client.request(Method::GET, &events).query(&[("limit", 100)])).await?
    };
    Ok((job, events))
}

/// The output of `attune jobs watch`.
struct Screen {
    /// The progress bar, if the output is a terminal.
    bar: Option<ProgressBar>,
    /// Prints plain lines: the output is not a terminal, and `--json` is not set.
    plain: bool,
    said: Option<Instant>,
    step: u64,
    /// The position in the queue that was printed last.
    position: Option<i64>,
}

impl Screen {
    fn new(as_json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bar = (terminal && !as_json).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix:10} {wide_bar} {pos}/{len} steps\n{msg}");
            if let Ok(style) = style { bar.with_style(style) } else { bar }
        });
        Self { plain: bar.is_none() && !as_json, bar, said: None, step: 0, position: None }
    }

    fn show(&self, entry: &Entry) {
        let Entry::Message(message) = entry else { return };
        match &self.bar {
            Some(bar) => bar.println(message),
            None if self.plain => drop(output::line(message)),
            None => {}
        }
    }

    fn draw(&mut self, job: &Value, story: &Story) {
        let step = story.last().map_or(0, |step| step.step);
        if let Some(bar) = &self.bar {
            bar.set_length(story.total_steps);
            bar.set_position(step);
            bar.set_prefix(output::text(&job["status"]));
            let progress = || format!("{}\n{}", story.sentence(), story.curve(CURVE_WIDTH));
            bar.set_message(queue_line(job).unwrap_or_else(progress));
            return;
        }
        self.show_place(job);
        let due = self.said.is_none_or(|said| said.elapsed() >= LINE_EVERY) || step == story.total_steps;
        if self.plain && step > self.step && due {
            drop(output::line(&format!("step {step}/{}: {}", story.total_steps, story.sentence())));
            (self.step, self.said) = (step, Some(Instant::now()));
        }
    }

    /// Prints the place of a waiting job as a plain line, if its position has changed.
    fn show_place(&mut self, job: &Value) {
        let position = job["position"].as_i64();
        if self.plain
            && position != self.position
            && let Some(line) = queue_line(job)
        {
            drop(output::line(&line));
        }
        self.position = position;
    }

    fn away(&self) {
        if let Some(bar) = &self.bar {
            bar.set_prefix("API down");
        }
    }

    /// Removes the bar; prints its last message as plain lines.
    fn clear(&self) {
        if let Some(bar) = &self.bar {
            let last = bar.message();
            bar.finish_and_clear();
            if !last.trim().is_empty() {
                drop(output::line(last.trim_end()));
            }
        }
    }
}
