//! Random adapters of rank 16 on all projections, as PEFT folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attune_domain::{
    architecture::PROJECTIONS,
    bytes::Bytes,
    id::AdapterVersionId,
    placement::Placement,
    run::RemoteFile,
    serve::{AdapterKey, AdapterRef},
    spec::AdapterSpec,
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    io::weights::architecture,
};
use attune_node::sha256_of_file;
use tch::{Device, Kind, Tensor};
use uuid::Uuid;

/// The rank of the adapters.
const RANK: u32 = 16;
/// The standard deviation of the factors `lora_B`: answers with an adapter differ from the base's, but stay text.
const DEVIATION: f64 = 1e-3;

/// Adapters in a folder: one folder each, named by its number.
pub(crate) struct Adapters {
    folder: PathBuf,
    count: usize,
}

impl Adapters {
    /// Returns the adapters 0 to `count` - 1 in `folder`; those that do not exist yet are written first.
    pub(crate) fn open(base: &Path, folder: &Path, count: usize) -> Result<Self> {
        let architecture = architecture(base)?;
        for number in 0..count {
            let target = folder.join(number.to_string());
            if target.exists() {
                continue;
            }
            let seed = number as u64;
            let adapter = LoraAdapter::new(&architecture, spec(), seed, Placement::default())?;
            tch::manual_seed(i64::try_from(seed)?);
            for (name, factor) in adapter.parameters() {
                if name.contains("lora_B") {
                    let random = Tensor::f_randn(factor.size(), (Kind::Float, Device::Cpu))?.f_mul_scalar(DEVIATION)?;
                    factor.shallow_clone().f_copy_(&random)?;
                }
            }
            // Renamed when it is complete, so that a killed run leaves no partial adapter.
            let writing = folder.join("writing");
            adapter.save(&writing, &Provenance { base_model: "bench".into() })?;
            std::fs::rename(&writing, &target).with_context(|| target.display().to_string())?;
        }
        Ok(Self { folder: folder.to_owned(), count })
    }

    /// Returns the memory of the factors of `count` adapters over `base`.
    pub(crate) fn memory_of(base: &Path, count: usize) -> Result<Bytes> {
        let one = LoraAdapter::new(&architecture(base)?, spec(), 0, Placement::default())?.bytes();
        Ok(Bytes(one * count as u64))
    }

    /// Returns the adapters as requests name them, with their files in the object store at `store`.
    pub(crate) async fn refs(&self, store: &str) -> Result<Vec<AdapterRef>> {
        let mut refs = Vec::with_capacity(self.count);
        for number in 0..self.count {
            let folder = self.folder.join(number.to_string());
            let files = remote_files(&folder, &format!("{store}/adapters/{number}")).await?;
            let id = AdapterKey::Version(AdapterVersionId::new(Uuid::from_u128(number as u128 + 1)));
            refs.push(AdapterRef { id, files, merge: None });
        }
        Ok(refs)
    }
}

fn spec() -> AdapterSpec {
    AdapterSpec::lora(RANK, 2.0 * f64::from(RANK), &PROJECTIONS)
}

/// Returns the files of a folder, which are served below `url`.
pub(crate) async fn remote_files(folder: &Path, url: &str) -> Result<Vec<RemoteFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
        let (sha256, bytes) = sha256_of_file(&path).await?;
        files.push(RemoteFile { url: format!("{url}/{name}"), name, sha256, bytes: Bytes(bytes) });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}
