//! The settings of a provider of the kind `slurm`.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::offer_settings::{self, Gpu, OfferSettings, whole_gpu};

/// The seconds before the time limit at which Slurm sends SIGTERM to the program.
pub(crate) const NOTICE_SECONDS: u32 = 120;

/// A `[[provider]]` section of the kind `slurm`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlurmConfig {
    /// The provider's name, which nodes' rows keep.
    #[serde(default = "slurm")]
    pub(crate) name: String,
    /// The folder for caches and logs, on the nodes; on the scheduler's machine, for text files of base models.
    pub(crate) work_dir: PathBuf,
    /// The folder of `attune-trainer` and `attune-serving` on the nodes.
    pub(crate) binaries_dir: PathBuf,
    /// Words before the program's path, such as `["apptainer", "exec", "--nv", "/images/attune.sif"]`.
    #[serde(default)]
    pub(crate) command_prefix: Vec<String>,
    /// The folder of `sbatch`, `squeue` and `scancel`. Default: `/usr/local/bin`, `/usr/bin` or `/bin`.
    pub(crate) commands_dir: Option<PathBuf>,
    /// The path of `slurm.conf`, if it is not the installation's default.
    pub(crate) slurm_conf: Option<PathBuf>,
    /// The partition.
    pub(crate) partition: String,
    /// The account that jobs are charged to.
    pub(crate) account: Option<String>,
    /// The quality of service.
    pub(crate) qos: Option<String>,
    /// The time limit of a run or replica, in minutes.
    #[serde(default = "a_day")]
    pub(crate) time_limit_minutes: u32,
    /// Seconds for which an answer of `squeue` is used again.
    #[serde(default = "five")]
    pub(crate) poll_seconds: u64,
    /// Seconds after which a command is killed.
    #[serde(default = "twenty")]
    pub(crate) command_seconds: u64,
    /// The address that replicas listen on. Default: the first that `hostname -I` prints on the node.
    pub(crate) listen_ip: Option<IpAddr>,
    /// The port of the metrics of a replica in the first slot of the first offer. Each further slot has the next port.
    /// Default: replicas publish no metrics.
    pub(crate) metrics_port: Option<u16>,
    /// The offers; never empty.
    #[serde(rename = "offer")]
    pub(crate) offers: Vec<SlurmOffer>,
}

/// A `[[provider.offer]]` section: the resources of one Slurm job.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlurmOffer {
    /// The offer's name.
    pub(crate) name: String,
    /// The memory of a job, in bytes.
    pub(crate) memory_bytes: u64,
    /// The CPU threads of a job.
    pub(crate) threads: u32,
    /// The GPUs of a job. Default: none; the offer is one without GPUs, whatever `gres` requests.
    pub(crate) gpu: Option<Gpu>,
    /// The generic resources of a job, such as `gpu:a100:1`. Default: `gpu:PRODUCT:COUNT` of `gpu`.
    pub(crate) gres: Option<String>,
    /// `true` if the cluster may reclaim the nodes at any time.
    #[serde(default)]
    pub(crate) spot: bool,
    /// The region of the nodes, which a job's `compute.regions` may require. Default: none.
    pub(crate) region: Option<String>,
    /// The maximum number of concurrent runs.
    #[serde(default = "one")]
    pub(crate) slots: u32,
    /// The price of an hour of a run, charged to its project, in US dollars. Default: 0.
    pub(crate) usd_per_hour: Option<f64>,
}

const fn one() -> u32 {
    1
}

const fn five() -> u64 {
    5
}

const fn twenty() -> u64 {
    20
}

const fn a_day() -> u32 {
    24 * 60
}

fn slurm() -> String {
    "slurm".into()
}

impl SlurmOffer {
    /// Returns the settings that all offers have.
    pub(crate) fn settings(&self) -> OfferSettings<'_> {
        OfferSettings {
            name: &self.name,
            memory_bytes: Some(self.memory_bytes),
            threads: Some(self.threads),
            slots: self.slots,
            usd_per_hour: self.usd_per_hour,
            gpu: self.gpu.as_ref(),
            spot: self.spot,
            region: self.region.as_deref(),
        }
    }

    /// Returns the generic resources of a job.
    pub(crate) fn gres(&self) -> Option<String> {
        let of_gpu = |gpu: &Gpu| format!("gpu:{}:{}", gpu.product, gpu.count);
        self.gres.clone().or_else(|| self.gpu.as_ref().map(of_gpu))
    }

    fn check(&self) -> Result<(), String> {
        let settings = self.settings();
        settings.check()?;
        settings.check_cloud_price()?;
        if self.gpu.as_ref().is_some_and(|gpu| gpu.resource != whole_gpu()) {
            return Err("gpu.resource: a Slurm cluster has none. Use `gres`.".into());
        }
        let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_.:,-=".contains(c));
        match self.gres().filter(|gres| gres.is_empty() || !is_word(gres)) {
            Some(gres) if self.gres.is_none() => {
                Err(format!("gres: `{gres}`, from gpu.product, has characters that Slurm does not allow. Set the key."))
            }
            Some(gres) => Err(format!("gres: `{gres}` is not a list such as gpu:a100:1")),
            None => Ok(()),
        }
    }
}

impl SlurmConfig {
    /// Checks the ranges of the values.
    ///
    /// # Errors
    /// The key, its value, and the allowed range.
    pub(crate) fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if self.time_limit_minutes <= NOTICE_SECONDS / 60 {
            let (minutes, least) = (self.time_limit_minutes, NOTICE_SECONDS / 60 + 1);
            return Err(format!("{name}.time_limit_minutes: {minutes} is below {least}"));
        }
        if self.offers.is_empty() {
            return Err(format!("{name}.offer: there is none. Add a [[provider.offer]] section."));
        }
        for (key, value) in [("poll_seconds", self.poll_seconds), ("command_seconds", self.command_seconds)] {
            if !(1..=300).contains(&value) {
                return Err(format!("{name}.{key}: {value} is not from 1 to 300"));
            }
        }
        let offers = self.offers.iter().map(|offer| (offer.name.as_str(), offer.check()));
        offer_settings::check_offers(name, offers)?;
        let slots: u32 = self.offers.iter().map(|offer| offer.slots).sum();
        let most = (u32::from(u16::MAX) + 1).saturating_sub(slots);
        match self.metrics_port {
            Some(port) if !(1024..=most).contains(&u32::from(port)) => {
                Err(format!("{name}.metrics_port: {port} is not from 1024 to {most}: each of {slots} slots has a port"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use figment::{
        Figment,
        providers::{Format, Toml},
    };

    use super::*;

    const LEAST: &str = "work_dir = '/scratch/attune'\nbinaries_dir = '/opt/attune/bin'\npartition = 'gpu'\n";
    const OFFER: &str = "[[offer]]\nname = 'a100'\nmemory_bytes = 64_000_000_000\nthreads = 8\n";

    fn read(text: &str) -> Result<SlurmConfig, String> {
        let config: SlurmConfig =
            Figment::from(Toml::string(text)).extract().map_err(|error: figment::Error| error.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = read(&format!("{LEAST}{OFFER}gres = 'gpu:a100:1'")).unwrap();
        assert_eq!((config.name.as_str(), config.time_limit_minutes, config.poll_seconds), ("slurm", 1440, 5));
        let offer = &config.offers[0];
        assert_eq!((offer.slots, offer.settings().micro_usd_per_hour()), (1, 0));
        assert_eq!((offer.gres().as_deref(), &offer.gpu), (Some("gpu:a100:1"), &None));
        let gpu = "gpu = { product = 'NVIDIA-L4', count = 2, memory_bytes = 24_000_000_000 }\nregion = 'eu'\n\
                   usd_per_hour = 0";
        let gres = |text: &str| read(&format!("{LEAST}{OFFER}{text}")).unwrap().offers[0].gres();
        assert_eq!(gres(gpu).as_deref(), Some("gpu:NVIDIA-L4:2"));
        assert_eq!(gres(&format!("{gpu}\ngres = 'gpu:l4:2'")).as_deref(), Some("gpu:l4:2"));
        assert_eq!(gres(""), None);
    }

    #[test]
    fn limit_a_value_out_of_range_is_named() {
        let refused = |top: &str, offer: &str| read(&format!("{LEAST}{top}\n{OFFER}{offer}")).unwrap_err();
        assert_eq!(refused("time_limit_minutes = 2", ""), "slurm.time_limit_minutes: 2 is below 3");
        assert_eq!(refused("name = 'x'\npoll_seconds = 0", ""), "x.poll_seconds: 0 is not from 1 to 300");
        assert_eq!(refused("", "slots = 65"), "slurm.offer a100: slots: 65 is not from 1 to 64");
        assert_eq!(refused("", "usd_per_hour = -1"), "slurm.offer a100: usd_per_hour: -1 is not from 0 to 1000000000");
        let spot = refused("", "spot = true");
        assert_eq!(spot, "slurm.offer a100: usd_per_hour: 0 is no price of a spot machine. Set its price.");
        let mig =
            refused("", "gpu = { product = 'A', memory_bytes = 1_000_000_000, resource = 'nvidia.com/mig-1g.5gb' }");
        assert_eq!(mig, "slurm.offer a100: gpu.resource: a Slurm cluster has none. Use `gres`.");
        let spaced = refused("", "gpu = { product = 'NVIDIA L4', memory_bytes = 1_000_000_000 }");
        assert!(spaced.contains("gres: `gpu:NVIDIA L4:1`, from gpu.product, has characters"), "{spaced}");
        let list = refused("", "gres = ''");
        assert_eq!(list, "slurm.offer a100: gres: `` is not a list such as gpu:a100:1");
        let twice = refused("", OFFER);
        assert_eq!(twice, "slurm.offer: two have the name `a100`. Set a different `name` in each.");
        let small = read(&format!("{LEAST}{}", OFFER.replace("64_000_000_000", "0"))).unwrap_err();
        assert_eq!(small, "slurm.offer a100: memory_bytes: 0 is below 1048576");
        assert_eq!(
            read(&format!("{LEAST}metrics_port = 65_472\n{OFFER}slots = 64")).unwrap().metrics_port,
            Some(65_472)
        );
        let port = refused("metrics_port = 65_473", "slots = 64");
        assert_eq!(port, "slurm.metrics_port: 65473 is not from 1024 to 65472: each of 64 slots has a port");
        assert!(refused("metrics_port = 80", "").starts_with("slurm.metrics_port: 80 is not from 1024 to 65535"));
        let none = read(&format!("{LEAST}offer = []")).unwrap_err();
        assert_eq!(none, "slurm.offer: there is none. Add a [[provider.offer]] section.");
        assert!(read(&format!("{LEAST}{OFFER}gpus = 1")).unwrap_err().contains("gpus"));
    }
}
