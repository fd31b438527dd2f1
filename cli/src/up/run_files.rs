//! The settings files of the API and the scheduler, rewritten in `<data>/run/` at each start.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Serialize;
use toml::{Table, Value};

use super::{
    private,
    settings::{ObjectStore, Settings},
};
use crate::error::{Doing, Result};

/// The settings that are determined at the start, in addition to [`Settings`].
pub(crate) struct Start<'a> {
    /// The data folder.
    pub(crate) data: &'a Path,
    /// The address that the API listens on.
    pub(crate) listen: String,
    /// The API's URL for clients.
    pub(crate) public_url: String,
    /// The API's URL for trainers and replicas on this machine.
    pub(crate) api_url: String,
    /// The database URL of the login role.
    pub(crate) database_url: String,
    /// The database URL of the owner of the tables: only for the API, which runs the migrations.
    pub(crate) database_owner_url: Option<String>,
    /// The object store.
    pub(crate) object_store: &'a ObjectStore,
    /// The API key of the first project.
    pub(crate) bootstrap_key: &'a str,
    /// The key that encrypts the secrets of webhook endpoints, unless the settings set another.
    pub(crate) webhooks_secret_key: &'a str,
}

#[derive(Serialize)]
struct Database<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner_url: Option<&'a str>,
    max_connections: u32,
}

/// Writes `api.toml` and `scheduler.toml`; returns their paths.
///
/// # Errors
/// [`crate::error::CliError::Failed`]: a file cannot be written.
pub(crate) fn write(start: &Start<'_>, settings: &Settings) -> Result<(PathBuf, PathBuf)> {
    let folder = start.data.join("run");
    private::folder(&folder)?;
    let (api, scheduler) = (folder.join("api.toml"), folder.join("scheduler.toml"));
    private::write(&api, &text(&api_table(start, settings)?)?)?;
    private::write(&scheduler, &text(&scheduler_table(start, settings)?)?)?;
    Ok((api, scheduler))
}

fn text(table: &Table) -> Result<String> {
    toml::to_string(table).doing(|| "write settings as TOML".into())
}

fn shared(start: &Start<'_>, settings: &Settings, owner_url: Option<&str>) -> Result<Table> {
    let max_connections = settings.database.max_connections.unwrap_or(16);
    let database = Database { url: &start.database_url, owner_url, max_connections };
    let mut table = Table::new();
    table.insert("database".into(), Value::try_from(database).doing(|| "write settings as TOML".into())?);
    table.insert("object_store".into(), Value::try_from(start.object_store).doing(|| "write settings as TOML".into())?);
    let mut webhooks = settings.webhooks.clone();
    webhooks.entry("secret_key").or_insert_with(|| start.webhooks_secret_key.into());
    insert_section(&mut table, "webhooks", webhooks);
    // The API answers requests, the scheduler the rows of batches.
    insert_section(&mut table, "prices", settings.prices.clone());
    Ok(table)
}

fn api_table(start: &Start<'_>, settings: &Settings) -> Result<Table> {
    let mut table = shared(start, settings, start.database_owner_url.as_deref())?;
    table.insert("listen".into(), start.listen.clone().into());
    table.insert("public_url".into(), start.public_url.clone().into());
    table.insert("bootstrap_key".into(), start.bootstrap_key.into());
    insert_section(&mut table, "limits", settings.limits.clone());
    if !settings.oidc.is_empty() {
        table.insert("oidc".into(), settings.oidc.clone().into());
    }
    insert_section(&mut table, "rate_limits", settings.rate_limits.clone());
    insert_section(&mut table, "cors", settings.cors.clone());
    insert_section(&mut table, "metrics", listen(settings.metrics.api));
    let mut serving = inference(settings);
    serving.extend(number("disk_cache_bytes", settings.serving.disk_cache_bytes));
    insert_section(&mut table, "serving", serving);
    Ok(table)
}

fn scheduler_table(start: &Start<'_>, settings: &Settings) -> Result<Table> {
    let mut table = shared(start, settings, None)?;
    table.insert("api_url".into(), start.api_url.clone().into());
    let with_paths = |mut section: Table| {
        section.entry("work_dir").or_insert_with(|| start.data.join("node").display().to_string().into());
        section.entry("binaries_dir").or_insert_with(|| settings.binaries.display().to_string().into());
        section
    };
    if settings.providers.is_empty() {
        table.insert("local".into(), with_paths(settings.local.clone()).into());
    } else {
        // The scheduler refuses both.
        insert_section(&mut table, "local", settings.local.clone());
        let providers: Vec<_> = settings.providers.iter().cloned().map(with_paths).collect();
        table.insert("provider".into(), providers.into());
    }
    insert_section(&mut table, "leases", settings.leases.clone());
    let mut metrics = listen(settings.metrics.scheduler);
    metrics.extend(settings.metrics.projects.map(|projects| ("projects".to_owned(), i64::from(projects).into())));
    metrics.extend(settings.metrics.adapters.map(|adapters| ("adapters".to_owned(), i64::from(adapters).into())));
    insert_section(&mut table, "metrics", metrics);
    let mut serving = inference(settings);
    serving.extend(number("idle_seconds", settings.serving.idle_seconds));
    serving.extend(number("max_replicas", settings.serving.max_replicas));
    serving.extend(number("target_concurrency", settings.serving.target_concurrency));
    insert_section(&mut table, "serving", serving);
    Ok(table)
}

fn listen(address: Option<SocketAddr>) -> Table {
    address.map(|address| ("listen".to_owned(), address.to_string().into())).into_iter().collect()
}

/// Returns the keys of `[serving]` for requests of models, which are the same in both files.
fn inference(settings: &Settings) -> Table {
    let mut serving = number("wait_seconds", settings.serving.wait_seconds);
    serving
        .extend(settings.serving.base_quantization.clone().map(|name| ("base_quantization".to_owned(), name.into())));
    serving.extend(settings.serving.compute.clone().map(|name| ("compute".to_owned(), name.into())));
    serving.extend(settings.serving.speculation.map(|speculates| ("speculation".to_owned(), speculates.into())));
    serving
}

/// Inserts a section. An empty one is left out, so that the reader's defaults apply.
fn insert_section(table: &mut Table, name: &str, section: Table) {
    if !section.is_empty() {
        table.insert(name.into(), section.into());
    }
}

fn number(name: &str, value: Option<u64>) -> Table {
    value.and_then(|v| i64::try_from(v).ok()).map(|v| (name.to_owned(), Value::Integer(v))).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::up::settings::UpArgs;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        up: UpArgs,
    }

    fn settings(file: &Path) -> Settings {
        Settings::settle(Flags::parse_from([Path::new("up"), Path::new("--config"), file]).up).unwrap()
    }

    fn store() -> ObjectStore {
        toml::from_str("access_key_id = 'a'\nsecret_access_key = 'b'").unwrap()
    }

    fn start<'a>(data: &'a Path, store: &'a ObjectStore) -> Start<'a> {
        Start {
            data,
            listen: "127.0.0.1:0".into(),
            public_url: "http://a".into(),
            api_url: "http://a".into(),
            database_url: "postgres://a".into(),
            database_owner_url: None,
            object_store: store,
            bootstrap_key: "k",
            webhooks_secret_key: "s",
        }
    }

    #[test]
    fn metrics_have_an_address_for_each_program() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[metrics]\nscheduler = '127.0.0.1:9465'\nprojects = 3").unwrap();
        let (settings, store) = (settings(file.path()), store());
        let start = start(file.path(), &store);
        let table = scheduler_table(&start, &settings).unwrap();
        let metrics = &table["metrics"];
        assert_eq!((metrics["listen"].as_str(), metrics["projects"].as_integer()), (Some("127.0.0.1:9465"), Some(3)));
        assert!(!api_table(&start, &settings).unwrap().contains_key("metrics"));
    }

    #[test]
    fn providers_replace_the_section_of_this_machine_and_get_default_paths() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[[provider]]\nkind = 'slurm'\n[[provider]]\nkind = 'local'\nwork_dir = '/x'")
            .unwrap();
        let settings = settings(file.path());
        let table = scheduler_table(&start(file.path(), &store()), &settings).unwrap();
        let providers = table["provider"].as_array().unwrap();
        let default = file.path().join("node").display().to_string();
        let folders: Vec<_> = providers.iter().map(|one| one["work_dir"].as_str().unwrap()).collect();
        assert_eq!((folders, table.get("local")), (vec![default.as_str(), "/x"], None));
        assert!(providers.iter().all(|one| one["binaries_dir"].is_str()));
    }

    #[test]
    fn both_files_have_the_settings_for_requests_of_models() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "[prices]\nusd_per_million_input_tokens = 0.5\n\
                    [serving]\nwait_seconds = 7\nidle_seconds = 8\nbase_quantization = 'int8'\n\
                    compute = 'f32'\nspeculation = false\nmax_replicas = 3\ntarget_concurrency = 5\n\
                    disk_cache_bytes = 9";
        std::fs::write(file.path(), text).unwrap();
        let (settings, store) = (settings(file.path()), store());
        let start = start(file.path(), &store);
        let tables = [api_table(&start, &settings).unwrap(), scheduler_table(&start, &settings).unwrap()];
        for table in &tables {
            assert_eq!(table["prices"]["usd_per_million_input_tokens"].as_float(), Some(0.5));
            assert_eq!(table["serving"]["wait_seconds"].as_integer(), Some(7));
            assert_eq!(table["serving"]["base_quantization"].as_str(), Some("int8"));
            assert_eq!(table["serving"]["compute"].as_str(), Some("f32"));
            assert_eq!(table["serving"]["speculation"].as_bool(), Some(false));
        }
        assert!(tables[1].get("provider").is_none() && tables[1]["local"]["work_dir"].is_str());
        let idle = tables.each_ref().map(|table| table["serving"].get("idle_seconds").and_then(Value::as_integer));
        assert_eq!(idle, [None, Some(8)]);
        let disk = tables.each_ref().map(|table| table["serving"].get("disk_cache_bytes").and_then(Value::as_integer));
        assert_eq!(disk, [Some(9), None]);
        let serving = &tables[1]["serving"];
        assert_eq!(serving["max_replicas"].as_integer(), Some(3));
        assert_eq!(serving["target_concurrency"].as_integer(), Some(5));
    }
}
