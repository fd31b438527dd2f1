//! Commands and flags. `--help` shows the `///` lines.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    adapters::commands::{self as adapters, AdaptersCommand},
    connection::{
        client::Client,
        config, find_credentials,
        login::{self, Given},
        profiles::{self, ProfileCommand},
    },
    deployments::{self, DeploymentsCommand},
    error::Result,
    files::commands::{self as files, FilesCommand},
    inference::{
        batches::{self, BatchesCommand},
        chat::{self, ChatArgs},
        complete::{self, CompleteArgs},
    },
    jobs::{
        commands::{self as jobs, JobsCommand},
        lr_find::{self, LrFindArgs},
    },
    models::{self, ModelsCommand},
    organization::{
        audit_log::{self, AuditLogArgs},
        catalogue::{self, CatalogueCommand},
        keys::{self, KeysCommand},
        members::{self, MembersCommand},
        organizations::{self, OrganizationsCommand},
        projects::{self, ProjectsCommand},
    },
    output,
    top::{self, TopArgs},
    up::{self, settings::UpArgs},
    usage::{self, BudgetsCommand, UsageArgs},
    webhooks::{self, WebhooksCommand},
};

const EXAMPLES: &str = "\
Examples:
  attune up
  attune models import SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2
  attune jobs create --model smollm2 --training-file train.jsonl --suffix orders --watch
  attune jobs create -f job.yaml
  attune lr-find --model smollm2 --training-file train.jsonl
  attune chat --model ft:smollm2:… 'Two coffees, please'
  attune adapters export ft:smollm2:… --format peft my-adapter

Exit codes: 0 success, 1 local failure, 2 wrong usage, 3 Attune is unreachable, 4 the API refused the request,
5 not found, 6 the job failed, 7 the job was cancelled, 8 already running";

/// Fine-tune and serve language models on your own machines
#[derive(Debug, Parser)]
#[command(name = "attune", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// The data folder of `attune up`, in which the other commands find the API's address and key
    #[arg(
        long,
        global = true,
        help_heading = "Every command",
        value_name = "DIR",
        env = "ATTUNE_DATA",
        default_value = ".attune"
    )]
    data: PathBuf,
    /// The API's address [default: from the data folder, then from the current profile, then from
    /// ~/.config/attune/credentials.json]
    #[arg(long, global = true, help_heading = "Every command", value_name = "URL", env = "ATTUNE_API_URL")]
    api_url: Option<String>,
    /// The API key [default: as for --api-url]
    #[arg(
        long,
        global = true,
        help_heading = "Every command",
        value_name = "KEY",
        env = "ATTUNE_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// The profile of ~/.config/attune/config.toml to use; `attune login` creates one
    #[arg(long, global = true, help_heading = "Every command", value_name = "NAME", env = "ATTUNE_PROFILE")]
    profile: Option<String>,
    /// Print the API's JSON instead of text
    #[arg(long, global = true, help_heading = "Every command")]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole platform on this machine until Ctrl-C
    Up(Box<UpArgs>),
    /// Manage base models and fine-tuned models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Manage files, such as datasets
    #[command(subcommand)]
    Files(FilesCommand),
    /// Manage fine-tuning jobs
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Find a learning rate: start a job, wait until its range test has chosen a rate, and cancel it
    LrFind(Box<LrFindArgs>),
    /// Manage adapters, the results of fine-tuning jobs and imports
    #[command(subcommand)]
    Adapters(AdaptersCommand),
    /// Manage deployments: the number of replicas that serve a base model
    #[command(subcommand)]
    Deployments(DeploymentsCommand),
    /// Manage batches: many requests in one file, processed asynchronously
    #[command(subcommand)]
    Batches(BatchesCommand),
    /// Show the queue, the runs, the machines and the replicas of the organization, refreshed until Ctrl-C
    Top(TopArgs),
    /// Show usage and costs
    Usage(UsageArgs),
    /// Manage the project's monthly budget; when it is spent, jobs are paused
    #[command(subcommand)]
    Budgets(BudgetsCommand),
    /// Manage webhook endpoints and their deliveries
    #[command(subcommand)]
    Webhooks(WebhooksCommand),
    /// Create a chat completion, or start an interactive chat
    Chat(Box<ChatArgs>),
    /// Create a completion of a plain text
    Complete(Box<CompleteArgs>),
    /// Manage the installation's organizations
    #[command(subcommand)]
    Organizations(OrganizationsCommand),
    /// Manage the organization's projects
    #[command(subcommand)]
    Projects(ProjectsCommand),
    /// Manage a project's API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Manage the users of the organization and of its projects
    #[command(subcommand)]
    Members(MembersCommand),
    /// Manage the catalogue: instance types of clouds, and their prices
    #[command(subcommand)]
    Catalogue(CatalogueCommand),
    /// List the organization's audit logs
    AuditLog(AuditLogArgs),
    /// Store an address and a key as a profile: `attune login --profile work --api-url https://…`
    Login,
    /// Manage profiles: named addresses and keys
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Print the JSON Schema of a file that `attune` reads
    Schema {
        /// The kind of file
        of: Schema,
    },
    /// Print the completion script of a shell, for the shell to source
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// The kinds of files that have a schema.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Schema {
    /// A job, for `attune jobs create -f`
    Job,
}

/// The JSON Schema of a job file, generated from the API's own types.
const JOB_SCHEMA: &str = include_str!("../../openapi/job.schema.json");

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// [`crate::error::CliError`], which determines the exit code.
    pub(crate) async fn run(self) -> Result<()> {
        let json = self.json;
        match self.command {
            Command::Up(args) => return up::platform::up(&self.data, *args).await,
            Command::Models(ModelsCommand::Convert { gguf, folder }) => return models::convert(&gguf, &folder, json),
            Command::Login => {
                let given = Given { url: self.api_url, key: self.api_key };
                return login::login(&profiles::path(config::user_folder())?, self.profile, given, json).await;
            }
            Command::Profile(command) => return profiles::run(&profiles::path(config::user_folder())?, &command, json),
            Command::Schema { of: Schema::Job } => return output::line(JOB_SCHEMA.trim_end()),
            Command::Completion { shell } => return completion(shell),
            _ => {}
        }
        let files = find_credentials::files(&self.data);
        let credentials = find_credentials::find(self.api_url, self.api_key, self.profile.as_deref(), &files)?;
        let client = Client::new(credentials)?;
        match self.command {
            Command::Models(command) => models::run(&client, command, json).await,
            Command::Files(command) => files::run(&client, command, json).await,
            Command::Jobs(command) => jobs::run(&client, command, json).await,
            Command::LrFind(args) => lr_find::run(&client, *args, json).await,
            Command::Adapters(command) => adapters::run(&client, command, json).await,
            Command::Deployments(command) => deployments::run(&client, command, json).await,
            Command::Batches(command) => batches::run(&client, command, json).await,
            Command::Top(args) => top::run(&client, &args, json).await,
            Command::Usage(args) => usage::run(&client, args, json).await,
            Command::Budgets(command) => usage::budgets(&client, command, json).await,
            Command::Webhooks(command) => webhooks::run(&client, command, json).await,
            Command::Chat(args) => chat::run(&client, *args, json).await,
            Command::Complete(args) => complete::run(&client, *args, json).await,
            Command::Organizations(command) => organizations::run(&client, command, json).await,
            Command::Projects(command) => projects::run(&client, command, json).await,
            Command::Keys(command) => keys::run(&client, command, json).await,
            Command::Members(command) => members::run(&client, command, json).await,
            Command::Catalogue(command) => catalogue::run(&client, command, json).await,
            Command::AuditLog(args) => audit_log::run(&client, args, json).await,
            // Handled above: these need no client, or create their own.
            Command::Up(_)
            | Command::Login
            | Command::Profile(_)
            | Command::Schema { .. }
            | Command::Completion { .. } => Ok(()),
        }
    }
}

fn completion(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "attune", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_are_taken_after_the_command() {
        let cli = Cli::try_parse_from(["attune", "jobs", "list", "--json", "--api-url", "http://x"]).unwrap();
        assert!(cli.json);
        assert_eq!(cli.api_url.as_deref(), Some("http://x"));
    }

    #[test]
    fn every_shell_gets_a_script_with_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "attune", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["adapters", "lr-find", "completion"] {
                assert!(script.contains(word), "{shell} does not know {word}");
            }
        }
    }

    #[test]
    fn the_schema_is_one() {
        let schema: serde_json::Value = serde_json::from_str(JOB_SCHEMA).unwrap();
        assert_eq!(schema["$ref"], "#/$defs/NewJob");
        assert!(schema["$defs"]["NewJob"]["properties"]["trainer"].is_object());
    }

    #[test]
    fn another_format_is_refused_with_those_that_are() {
        let parsed = Cli::try_parse_from(["attune", "adapters", "export", "ft:x", "--format", "onnx", "out"]);
        let refused = parsed.unwrap_err().to_string();
        let known = "possible values: peft, tar, merged, gguf, gguf-adapter";
        assert!(refused.contains("onnx") && refused.contains(known), "{refused}");
    }
}
