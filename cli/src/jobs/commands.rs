//! The commands about jobs.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    create::{self, CreateArgs, NewJobArgs},
    estimate, event_line, follow,
    permissions::{self, PermissionsCommand},
    watch,
};
use crate::{connection::client::Client, error::Result, output, usage};

/// Commands about fine-tuning jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Start a fine-tuning job
    Create(Box<CreateArgs>),
    /// Say what a job would take: steps, tokens, memory, machine, time, price; nothing is started
    Estimate(Box<NewJobArgs>),
    /// List the jobs, newest first
    List {
        /// At most so many
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
    },
    /// Show one job
    Get {
        /// Its id, ftjob-…
        id: String,
    },
    /// Print what a job went through, oldest first
    Events {
        /// Its id, ftjob-…
        id: String,
        /// Go on with what happens, until the job has ended; with --json a document per line
        #[arg(long, short)]
        follow: bool,
    },
    /// List the states from which a job could go on
    Checkpoints {
        /// Its id, ftjob-…
        id: String,
    },
    /// Which other projects may use a checkpoint
    #[command(subcommand)]
    Permissions(PermissionsCommand),
    /// Follow a job to its end: progress, loss, time left
    #[command(after_help = "Exit code 0: the job succeeded; 6: it failed; 7: it was cancelled. Ctrl-C ends only the \
                            watching; the job goes on.")]
    Watch {
        /// Its id, ftjob-…
        id: String,
    },
    /// Change what a job may cost; one that its cap had paused goes on by itself
    Update {
        /// Its id, ftjob-…
        id: String,
        /// Dollars, or `none`
        #[arg(long, value_name = "USD|none")]
        max_price_usd: String,
    },
    /// Let a job wait; its trainer stops at its next step, with a checkpoint
    Pause {
        /// Its id, ftjob-…
        id: String,
    },
    /// Let a paused job go on from its last checkpoint
    Resume {
        /// Its id, ftjob-…
        id: String,
    },
    /// Cancel a job; a trainer stops at its next report
    Cancel {
        /// Its id, ftjob-…
        id: String,
    },
}

/// Does it.
///
/// # Errors
/// [`crate::error::CliError`]: this machine's, the API's, or a watched job's.
pub(crate) async fn run(client: &Client, command: JobsCommand, as_json: bool) -> Result<()> {
    match command {
        JobsCommand::Create(args) => create(client, *args, as_json).await,
        JobsCommand::Estimate(args) => estimate::run(client, *args, as_json).await,
        JobsCommand::List { limit } => list(client, limit, as_json).await,
        JobsCommand::Get { id } => show(&client.get(&["fine_tuning", "jobs", &id]).await?, as_json),
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

/// Asks for a change of a job's life, and says what has become of it.
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
    output::table(&headings, rows.collect(), "No jobs yet: start one with `attune jobs create`.")
}

/// What `attune jobs get` shows of the trainer; `--json` has all of it.
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
        ("paused because", output::text(&job["pause_reason"])),
        ("waits because", output::text(&job["waiting_reason"])),
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
        ("may cost", output::text(&job["compute"]["max_price_usd"])),
        ("has cost", output::text(&job["usage"]["cost_usd"])),
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
