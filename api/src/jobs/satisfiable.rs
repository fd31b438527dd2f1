//! The check that an offer can satisfy the limits of a job, before the job exists.

use attune_domain::offer::{ComputeLimits, Offer, Refusal, unsupported};
use attune_store::runs::offer;
use chrono::Utc;

use crate::{app::App, error::ApiError, wire::job::NewJob};

/// Checks that the limits of a job allow an offer of the configured providers. The memory and the duration of the job
/// are not known yet, so they do not count; without any offer, the job waits for one.
///
/// # Errors
/// [`ApiError::Invalid`] with the reason of each offer, or the first invalid limit. [`ApiError::Internal`].
pub async fn check(app: &App, new: &NewJob) -> Result<(), ApiError> {
    let Some(compute) = &new.compute else { return Ok(()) };
    let limits = compute.limits(Utc::now().timestamp())?;
    if limits == ComputeLimits::default() {
        return Ok(());
    }
    let mut db = app.platform().await?;
    let offers = offer::list(&mut db).await?;
    drop(db);
    match refusals(&limits, &offers) {
        None => Ok(()),
        Some(refusals) => {
            let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            Err(ApiError::Invalid {
                param: Some("compute".into()),
                code: "no_offer",
                message: format!("Invalid 'compute': no machine satisfies it: {}.", reasons.join("; ")),
            })
        }
    }
}

/// Returns the reason of each offer, if the limits allow none of them; `None`: they allow one, or there is none.
fn refusals(limits: &ComputeLimits, offers: &[Offer]) -> Option<Vec<Refusal>> {
    let refused: Vec<Refusal> =
        offers.iter().filter_map(|offer| unsupported(offer).or_else(|| limits.refusal(offer))).collect();
    (!offers.is_empty() && refused.len() == offers.len()).then_some(refused)
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        bytes::Bytes,
        offer::{DeviceChoice, OfferDevice},
    };

    use super::*;

    fn offer(name: &str, price: u64) -> Offer {
        let device = match name {
            "gpu" => OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_487) },
            _ => OfferDevice::Cpu,
        };
        let idle = Offer::cpu("cloud", name, Bytes::mib(1000), 2);
        Offer { free_slots: 0, micro_usd_per_hour: price, device, ..idle }
    }

    #[test]
    fn only_limits_that_refuse_every_offer_are_refused() {
        let dear = ComputeLimits { max_micro_usd_per_hour: Some(5), ..ComputeLimits::default() };
        assert_eq!(refusals(&dear, &[]), None, "the job waits for the first offer");
        assert_eq!(refusals(&dear, &[offer("a", 6), offer("b", 5)]), None);
        let codes = |limits: &ComputeLimits, offers: &[Offer]| -> Vec<&'static str> {
            refusals(limits, offers).unwrap().iter().map(Refusal::code).collect()
        };
        assert_eq!(codes(&dear, &[offer("a", 6), offer("gpu", 1)]), ["price", "device_not_in_build"]);
        let cuda = ComputeLimits { device: DeviceChoice::Cuda, ..ComputeLimits::default() };
        assert_eq!(codes(&cuda, &[offer("a", 0), offer("gpu", 0)]), ["other_device", "device_not_in_build"]);
    }
}
