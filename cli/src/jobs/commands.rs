//! `attune jobs`: creates, lists, inspects and changes fine-tuning jobs.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    create::{self, CreateArgs, NewJobArgs},
    estimate, event_line, explain, follow,
    permissions::{self, PermissionsCommand},
    watch,
};
use crate::{connection::client::Client, error::Result, output, usage};

/// The subcommands of `attune jobs`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Create a fine-tuning job
    Create(Box<CreateArgs>),
    /// Estimate a job's steps, tokens, memory, node, time and price; creates no job
    Estimate(Box<NewJobArgs>),
    /// List the jobs, newest first
    List {
        /// The maximum number of jobs
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
    },
    /// Retrieve a job
    Get {
        /// The job's ID, ftjob-…
        id: String,
    },
    /// Explain why a job runs where it runs, why it waits, or why it failed
    Explain {
        /// The job's ID, ftjob-…
        id: String,
    },
    /// Print a job's events, oldest first
    Events {
        /// The job's ID, ftjob-…
        id: String,
        /// Print new events until the job has ended; with --json, one JSON document per line
        #[arg(long, short)]
        follow: bool,
    },
    /// List a job's checkpoints
    Checkpoints {
        /// The job's ID, ftjob-…
        id: String,
    },
    /// Manage the permissions of other projects to use a checkpoint
    #[command(subcommand)]
    Permissions(PermissionsCommand),
    /// Watch a job until it ends: progress, loss, time left
    #[command(after_help = "Exit code 0: the job succeeded; 6: it failed; 7: it was cancelled. Ctrl-C ends only the \
                            watching; the job continues.")]
    Watch {
        /// The job's ID, ftjob-…
        id: String,
    },
    /// Change a job's maximum price; a job that was paused at its maximum price resumes automatically
    Update {
        /// The job's ID, ftjob-…
        id: String,
        /// The maximum price in USD, or `none`
        #[arg(long, value_name = "USD|none")]
        max_price_usd: String,
    },
    /// Pause a job; its trainer stops at its next step, with a checkpoint
    Pause {
        /// The job's ID, ftjob-…
        id: String,
    },
    /// Resume a paused job from its last checkpoint
    Resume {
        /// The job's ID, ftjob-…
        id: String,
    },
    /// Cancel a job; its trainer stops at its next report
    Cancel {
        /// The job's ID, ftjob-…
        id: String,
    },
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, those of the API, or the failure of a watched job.
pub(crate) async fn run(client: &Client, command: JobsCommand, as_json: bool) -> Result<()> {
    match command {
        JobsCommand::Create(args) => create(client, *args, as_json).await,
        JobsCommand::Estimate(args) => estimate::run(client, *args, as_json).await,
        JobsCommand::List { limit } => list(client, limit, as_json).await,
        JobsCommand::Get { id } => show(&client.get(&["fine_tuning", "jobs", &id]).await?, as_json),
        JobsCommand::Explain { id } => explain::run(client, &id, as_json).await,
        JobsCommand::Events { id, follow: true } => follow::run(client, &id, as_json).await,
        JobsCommand::Events { id, follow: false } => events(client, &id, as_json).await,
        JobsCommand::Checkpoints { id } => checkpoints(client, &id, as_json).await,
        JobsCommand::Permissions(command) => permissions::run(client, command, as_json).await,
        JobsCommand::Watch { id } => watch::run(client, &id, as_json).await,
        JobsCommand::Update { id, max_price_usd } => {
            let body = json!({ "compute": { "max_price_usd": usage::sum(&max_price_usd)? } });
            let update = client.request(Method::POST, &["fine_tuning", "jobs", &id]).json(&body);
            show(&client.json(update).await?, as_json)
        }
        JobsCommand::Pause { id } => change(client, &id, "pause", as_json).await,
        JobsCommand::Resume { id } => change(client, &id, "resume", as_json).await,
        JobsCommand::Cancel { id } => change(client, &id, "cancel", as_json).await,
    }
}

/// Cancels, pauses or resumes a job, and prints its new status.
async fn change(client: &Client, id: &str, what: &str, as_json: bool) -> Result<()> {
    let view = client.json(client.request(Method::POST, &["fine_tuning", "jobs", id, what])).await?;
    if as_json {
        return output::json(&view);
    }
    match (what, view["status"].as_str().unwrap_or("")) {
        ("cancel" | "pause", "running") => output::line(&format!("{id} stops at its trainer's next step")),
        (_, status) => output::line(&format!("{id} is {status}")),
    }
}

async fn create(client: &Client, args: CreateArgs, as_json: bool) -> Result<()> {
    let CreateArgs { new, watch, dry_run } = args;
    let body = create::laid(new)?;
    if dry_run {
        return output::json(&body.into());
    }
    let body = create::uploaded(client, body).await?;
    let view = client.json(client.request(Method::POST, &["fine_tuning", "jobs"]).json(&body)).await?;
    let id = output::text(&view["id"]);
    if !watch {
        return show(&view, as_json);
    }
    if !as_json {
        output::line(&format!("job {id}"))?;
    }
    watch::run(client, &id, as_json).await
}

async fn list(client: &Client, limit: Option<usize>, as_json: bool) -> Result<()> {
    let jobs = client.list(&["fine_tuning", "jobs"], limit).await?;
    if as_json {
        return output::json(&jobs);
    }
    let rows = jobs["data"].as_array().into_iter().flatten().map(|job| {
        vec![
            output::text(&job["id"]),
            output::text(&job["status"]),
            steps(job),
            output::text(&job["model"]),
            output::text(&job["fine_tuned_model"]),
            output::moment(&job["created_at"]),
        ]
    });
    let headings = ["JOB", "STATUS", "STEPS", "MODEL", "TUNED MODEL", "CREATED (UTC)"];
    output::table(&headings, rows.collect(), "No jobs yet. Create one with `attune jobs create`.")
}

/// The fields of `trainer` that `attune jobs get` shows; `--json` prints all of them.
const TRAINER_SHOWN: &[&str] = &[
    "learning_rate",
    "learning_rate_auto",
    "schedule",
    "optimizer",
    "max_length",
    "over_length",
    "max_steps",
    "micro_batch_size",
    "gradient_checkpointing",
];

fn steps(job: &Value) -> String {
    match (job["steps_done"].as_u64(), job["total_steps"].as_u64()) {
        (Some(done), Some(total)) => format!("{done}/{total}"),
        _ => String::new(),
    }
}

fn show(job: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(job);
    }
    let of = |section: &str, names: &[&str]| {
        let said = names.iter().filter_map(|name| {
            let value = &job[section][name];
            (!value.is_null()).then(|| format!("{name} {}", output::text(value)))
        });
        said.collect::<Vec<_>>().join(", ")
    };
    output::fields(&[
        ("job", output::text(&job["id"])),
        ("status", output::text(&job["status"])),
        ("pause reason", output::text(&job["pause_reason"])),
        ("waiting reason", output::text(&job["waiting_reason"])),
        ("position", output::text(&job["position"])),
        ("estimated start", output::moment(&job["estimated_start"])),
        ("priority", output::text(&job["compute"]["priority"])),
        ("error", output::text(&job["error"]["message"])),
        ("model", output::text(&job["model"])),
        ("continues from", output::text(&job["continue_from"])),
        ("tuned model", output::text(&job["fine_tuned_model"])),
        ("training file", output::text(&job["training_file"])),
        ("validation file", output::text(&job["validation_file"])),
        ("steps", steps(job)),
        ("method", output::text(&job["method"]["type"])),
        ("hyperparameters", of("hyperparameters", &["n_epochs", "batch_size", "learning_rate_multiplier"])),
        ("adapter", of("adapter", &["rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"])),
        ("quantization", of("quantization", &["type"])),
        ("trainer", of("trainer", TRAINER_SHOWN)),
        ("seed", output::text(&job["seed"])),
        ("attempts", output::text(&job["attempts"])),
        ("trained tokens", output::text(&job["trained_tokens"])),
        ("maximum price", output::text(&job["compute"]["max_price_usd"])),
        ("cost", output::text(&job["usage"]["cost_usd"])),
        ("result files", job["result_files"].as_array().into_iter().flatten().map(output::text).collect()),
        ("created", output::moment(&job["created_at"])),
        ("finished", output::moment(&job["finished_at"])),
    ])
}

async fn events(client: &Client, id: &str, as_json: bool) -> Result<()> {
    let events = client.list(&["fine_tuning", "jobs", id, "events"], None).await?;
    if as_json {
        return output::json(&events);
    }
    events["data"].as_array().into_iter().flatten().rev().try_for_each(event_line::print)
}

async fn checkpoints(client: &Client, id: &str, as_json: bool) -> Result<()> {
    let found = client.list(&["fine_tuning", "jobs", id, "checkpoints"], None).await?;
    if as_json {
        return output::json(&found);
    }
    let rows = found["data"].as_array().into_iter().flatten().map(|checkpoint| {
        vec![
            output::text(&checkpoint["id"]),
            output::text(&checkpoint["step_number"]),
            output::text(&checkpoint["metrics"]["train_loss"]),
            output::moment(&checkpoint["created_at"]),
        ]
    });
    output::table(&["CHECKPOINT", "STEP", "TRAIN LOSS", "CREATED (UTC)"], rows.collect(), "No checkpoints yet.")
}
