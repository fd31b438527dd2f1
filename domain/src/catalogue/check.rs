//! The checks of an entry. A price that is implausible would choose a wrong machine for every job, so it is refused.

use std::{collections::HashSet, fmt::Display, ops::RangeInclusive};

use super::{
    date::STALE_DAYS,
    entry::{CLOUDS, Catalogue, Gpu, InstanceType},
};
use crate::bad_field::BadField;

/// The range of the price of an hour of one GPU on demand, in US dollars.
const USD_PER_GPU: RangeInclusive<f64> = 0.05..=50.0;

/// The range of the price of an hour of one GiB of GPU memory on demand, in US dollars.
const USD_PER_GIB: RangeInclusive<f64> = 0.005..=0.5;

const GPUS: RangeInclusive<u32> = 1..=16;
const VCPUS: RangeInclusive<u32> = 1..=1024;
/// The memory of a machine, in MiB: 1 GiB to 32 TiB.
const MEMORY_MIB: RangeInclusive<u64> = 1024..=(32 << 20);
/// The memory of a GPU, in MiB: 1 GiB to 1 TiB.
const GPU_MIB: RangeInclusive<u64> = 1024..=(1 << 20);
const TFLOPS: RangeInclusive<f64> = 1.0..=100_000.0;
const GB_PER_S: RangeInclusive<f64> = 10.0..=100_000.0;
const SOURCE_CHARACTERS: RangeInclusive<usize> = 1..=300;

fn within<T: PartialOrd + Display>(param: &'static str, value: &T, range: &RangeInclusive<T>) -> Result<(), BadField> {
    if range.contains(value) {
        return Ok(());
    }
    let allowed = format!("a number from {} to {}", range.start(), range.end());
    Err(BadField { param, given: value.to_string(), allowed })
}

fn source(text: &str) -> Result<(), BadField> {
    if SOURCE_CHARACTERS.contains(&text.chars().count()) && !text.contains(char::is_control) {
        return Ok(());
    }
    let given = text.chars().take(40).collect();
    Err(BadField { param: "source", given, allowed: "1 to 300 characters that name the origin of the figures".into() })
}

/// Checks a kind of GPU.
pub(super) fn gpu(gpu: &Gpu) -> Result<(), BadField> {
    within("memory_mib", &gpu.memory_mib, &GPU_MIB)?;
    within("usable_mib", &gpu.usable_mib, &(*GPU_MIB.start()..=gpu.memory_mib))?;
    within("bf16_tflops", &gpu.bf16_tflops, &TFLOPS)?;
    within("bandwidth_gb_per_s", &gpu.bandwidth_gb_per_s, &GB_PER_S)?;
    source(&gpu.source)
}

/// Checks an instance type at a time in Unix seconds: its price must not be stale.
///
/// # Errors
/// The first [`BadField`].
pub fn check(entry: &InstanceType, gpus: &[Gpu], now: i64) -> Result<(), BadField> {
    if !CLOUDS.contains(&entry.cloud.as_str()) {
        return Err(BadField { param: "cloud", given: entry.cloud.clone(), allowed: CLOUDS.join(", ") });
    }
    let Some(gpu) = gpus.iter().find(|gpu| gpu.product == entry.gpu) else {
        let allowed: Vec<&str> = gpus.iter().map(|gpu| gpu.product.as_str()).collect();
        return Err(BadField { param: "gpu", given: entry.gpu.clone(), allowed: allowed.join(", ") });
    };
    within("gpus", &entry.gpus, &GPUS)?;
    within("vcpus", &entry.vcpus, &VCPUS)?;
    within("memory_mib", &entry.memory_mib, &MEMORY_MIB)?;
    prices(entry, gpu)?;
    source(&entry.source)?;
    age(entry, now)
}

/// Checks a whole catalogue, each price on its own date, and that nothing occurs twice.
pub(super) fn whole(catalogue: &Catalogue) -> Result<(), BadField> {
    catalogue.gpus.iter().try_for_each(gpu)?;
    catalogue.instances.iter().try_for_each(|entry| check(entry, &catalogue.gpus, entry.fetched.days() * 86_400))?;
    match duplicate(catalogue) {
        Some(given) => Err(BadField { param: "name", given, allowed: "in the catalogue once".into() }),
        None => Ok(()),
    }
}

fn prices(entry: &InstanceType, gpu: &Gpu) -> Result<(), BadField> {
    let (price, count) = (entry.usd_per_hour, f64::from(entry.gpus));
    let implausible = |unit: &str, value: f64, range: &RangeInclusive<f64>| BadField {
        param: "usd_per_hour",
        given: price.to_string(),
        allowed: format!("from {} to {} USD per hour and {unit}, and this is {value:.4}", range.start(), range.end()),
    };
    if !(price > 0.0 && price.is_finite()) {
        let allowed = "above 0: a machine of a cloud has a price".into();
        return Err(BadField { param: "usd_per_hour", given: price.to_string(), allowed });
    }
    let per_gpu = price / count;
    if !USD_PER_GPU.contains(&per_gpu) {
        return Err(implausible("GPU", per_gpu, &USD_PER_GPU));
    }
    let per_gib = per_gpu / (gpu.usable_mib as f64 / 1024.0);
    if !USD_PER_GIB.contains(&per_gib) {
        return Err(implausible("GiB of GPU memory", per_gib, &USD_PER_GIB));
    }
    match entry.spot_usd_per_hour {
        Some(spot) if !(spot > 0.0 && spot <= price) => {
            let allowed = format!("above 0 and at most usd_per_hour, {price}, or null");
            Err(BadField { param: "spot_usd_per_hour", given: spot.to_string(), allowed })
        }
        _ => Ok(()),
    }
}

fn age(entry: &InstanceType, now: i64) -> Result<(), BadField> {
    // A day of grace: the date may be one of another time zone.
    if (-1..=STALE_DAYS).contains(&entry.fetched.age_days(now)) {
        return Ok(());
    }
    let allowed = format!("a date of the last {STALE_DAYS} days");
    Err(BadField { param: "fetched", given: entry.fetched.to_string(), allowed })
}

/// Returns the first product or ID that occurs twice.
fn duplicate(catalogue: &Catalogue) -> Option<String> {
    let mut seen = HashSet::new();
    let gpus = catalogue.gpus.iter().map(|gpu| gpu.product.clone());
    let mut names = gpus.chain(catalogue.instances.iter().map(|entry| entry.id().to_string()));
    names.find(|name| !seen.insert(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::built_in;

    const NOW: i64 = 20_787 * 86_400;

    fn entry() -> InstanceType {
        let id = "aws.g6.xlarge.us-east-1".parse().unwrap();
        built_in().instance(&id).unwrap().clone()
    }

    fn refused(change: impl FnOnce(&mut InstanceType)) -> BadField {
        let mut entry = entry();
        change(&mut entry);
        check(&entry, &built_in().gpus, NOW).unwrap_err()
    }

    #[test]
    fn each_fault_of_an_entry_is_refused_by_its_field() {
        assert_eq!(check(&entry(), &built_in().gpus, NOW), Ok(()));
        type Change = fn(&mut InstanceType);
        let cases: [(&str, &str, Change); 13] = [
            ("cloud", "ibm", |entry| entry.cloud = "ibm".into()),
            ("gpu", "NVIDIA-K80", |entry| entry.gpu = "NVIDIA-K80".into()),
            ("gpus", "0", |entry| entry.gpus = 0),
            ("vcpus", "0", |entry| entry.vcpus = 0),
            ("memory_mib", "0", |entry| entry.memory_mib = 0),
            ("usd_per_hour", "0", |entry| entry.usd_per_hour = 0.0),
            ("usd_per_hour", "NaN", |entry| entry.usd_per_hour = f64::NAN),
            ("usd_per_hour", "0.01", |entry| entry.usd_per_hour = 0.01),
            ("usd_per_hour", "400", |entry| entry.usd_per_hour = 400.0),
            ("usd_per_hour", "20", |entry| entry.usd_per_hour = 20.0),
            ("spot_usd_per_hour", "0.9", |entry| entry.spot_usd_per_hour = Some(0.9)),
            ("spot_usd_per_hour", "0", |entry| entry.spot_usd_per_hour = Some(0.0)),
            ("source", "", |entry| entry.source.clear()),
        ];
        for (param, given, change) in cases {
            let wrong = refused(change);
            assert_eq!((wrong.param, wrong.given.as_str()), (param, given), "{wrong}");
        }
    }

    #[test]
    fn limit_a_price_must_be_of_the_last_days() {
        for (date, is_allowed) in
            [("2026-09-01", true), ("2026-08-31", false), ("2026-12-01", true), ("2026-12-02", false)]
        {
            let fetched = date.parse().unwrap();
            let checked = check(&InstanceType { fetched, ..entry() }, &built_in().gpus, NOW);
            assert_eq!(checked.is_ok(), is_allowed, "{date} {checked:?}");
        }
        assert_eq!(
            refused(|entry| entry.fetched = "2020-01-01".parse().unwrap()).to_string(),
            "fetched: 2020-01-01 is not allowed; it must be a date of the last 90 days"
        );
    }

    #[test]
    fn a_gpu_without_memory_or_with_more_usable_memory_than_it_has_is_refused() {
        let l4 = built_in().gpu("NVIDIA-L4").unwrap();
        assert_eq!(gpu(&Gpu { memory_mib: 0, ..l4.clone() }).unwrap_err().param, "memory_mib");
        assert_eq!(gpu(&Gpu { usable_mib: l4.memory_mib + 1, ..l4.clone() }).unwrap_err().param, "usable_mib");
        assert_eq!(gpu(&Gpu { bf16_tflops: 0.0, ..l4.clone() }).unwrap_err().param, "bf16_tflops");
        assert_eq!(gpu(&Gpu { bandwidth_gb_per_s: f64::NAN, ..l4.clone() }).unwrap_err().param, "bandwidth_gb_per_s");
    }

    #[test]
    fn what_occurs_twice_is_named() {
        let mut twice = built_in().clone();
        twice.instances.push(entry());
        assert_eq!(whole(&twice).unwrap_err().given, "aws.g6.xlarge.us-east-1");
    }
}
