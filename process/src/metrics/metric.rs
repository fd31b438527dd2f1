//! Counters, gauges and histograms as statics. `N` is the number of labels, so that a value without its labels does not
//! compile.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicU64},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{
        counter::Counter as ClientCounter,
        family::{Family, MetricConstructor},
        gauge::Gauge as ClientGauge,
        histogram::Histogram as ClientHistogram,
    },
    registry::Registry,
};

/// The labels of a series.
type Labels<const N: usize> = [(&'static str, String); N];

/// Held while the series of a gauge are replaced, so that no scrape sees a part of them.
static REPLACING: Mutex<()> = Mutex::new(());

/// Waits until no gauge is being replaced, and keeps it so.
pub(crate) fn while_none_is_replaced() -> MutexGuard<'static, ()> {
    REPLACING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A metric of the table.
pub trait Metric: Sync {
    /// Returns the description.
    fn about(&self) -> &About;

    /// Returns `counter`, `gauge` or `histogram`.
    fn kind(&self) -> &'static str;

    /// Adds the metric to the registry.
    fn register(&self, registry: &mut Registry);

    /// Returns the name.
    fn name(&self) -> &'static str {
        self.about().name
    }

    /// Returns the names of the labels.
    fn labels(&self) -> &'static [&'static str] {
        self.about().labels
    }

    /// Returns the help text without the full stop, which the registry adds.
    fn help(&self) -> &'static str {
        self.about().help.trim().trim_end_matches('.')
    }
}

/// The description of a metric.
#[derive(Debug)]
pub struct About {
    pub(crate) name: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

impl About {
    /// Returns the labels with these values, as many as the metric has labels.
    fn series<const N: usize>(&self, values: [&str; N]) -> Labels<N> {
        std::array::from_fn(|at| (self.labels[at], values[at].to_owned()))
    }
}

/// A number that only grows.
#[derive(Debug)]
pub struct Counter<const N: usize> {
    about: About,
    family: OnceLock<Family<Labels<N>, ClientCounter<f64, AtomicU64>>>,
}

impl<const N: usize> Counter<N> {
    pub(crate) const fn new(about: About) -> Self {
        Self { about, family: OnceLock::new() }
    }

    fn family(&self) -> &Family<Labels<N>, ClientCounter<f64, AtomicU64>> {
        self.family.get_or_init(Family::default)
    }

    /// Adds one.
    pub fn inc(&self, values: [&str; N]) {
        self.add(values, 1.0);
    }

    /// Adds `more`, which is not negative.
    pub fn add(&self, values: [&str; N], more: f64) {
        self.family().get_or_create(&self.about.series(values)).inc_by(more);
    }

    /// Raises the counter to a total that another source counts.
    pub(crate) fn raise_to(&self, values: [&str; N], total: f64) {
        let series = self.family().get_or_create(&self.about.series(values));
        let more = total - series.get();
        if more > 0.0 {
            series.inc_by(more);
        }
    }
}

impl<const N: usize> Metric for Counter<N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> &'static str {
        "counter"
    }

    fn register(&self, registry: &mut Registry) {
        // The text format adds the suffix.
        registry.register(self.name().trim_end_matches("_total"), self.help(), self.family().clone());
    }
}

/// A number that changes in both directions.
#[derive(Debug)]
pub struct Gauge<const N: usize> {
    about: About,
    family: OnceLock<Family<Labels<N>, ClientGauge<f64, AtomicU64>>>,
}

impl<const N: usize> Gauge<N> {
    pub(crate) const fn new(about: About) -> Self {
        Self { about, family: OnceLock::new() }
    }

    fn family(&self) -> &Family<Labels<N>, ClientGauge<f64, AtomicU64>> {
        self.family.get_or_init(Family::default)
    }

    /// Sets the value.
    pub fn set(&self, values: [&str; N], value: f64) {
        self.family().get_or_create(&self.about.series(values)).set(value);
    }

    /// Replaces all series by these, at once for readers.
    pub fn replace<S: AsRef<str>>(&self, all: &[([S; N], f64)]) {
        let _replacing = while_none_is_replaced();
        self.family().clear();
        for (values, value) in all {
            self.set(values.each_ref().map(AsRef::as_ref), *value);
        }
    }
}

impl Gauge<0> {
    /// Sets the present time, in Unix seconds.
    pub fn set_to_now(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        self.set([], now);
    }

    /// Adds one until the returned guard is dropped.
    #[must_use]
    pub fn hold(&'static self) -> Held {
        self.family().get_or_create(&[]).inc();
        Held(self)
    }
}

/// A part of a gauge, subtracted when it is dropped.
#[derive(Debug)]
pub struct Held(&'static Gauge<0>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.family().get_or_create(&[]).dec();
    }
}

impl<const N: usize> Metric for Gauge<N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> &'static str {
        "gauge"
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(self.name(), self.help(), self.family().clone());
    }
}

/// The upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buckets(pub(crate) &'static [f64]);

impl MetricConstructor<ClientHistogram> for Buckets {
    fn new_metric(&self) -> ClientHistogram {
        ClientHistogram::new(self.0.iter().copied())
    }
}

/// A distribution.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    about: About,
    buckets: Buckets,
    family: OnceLock<Family<Labels<N>, ClientHistogram, Buckets>>,
}

impl<const N: usize> Histogram<N> {
    pub(crate) const fn new(about: About, buckets: Buckets) -> Self {
        Self { about, buckets, family: OnceLock::new() }
    }

    fn family(&self) -> &Family<Labels<N>, ClientHistogram, Buckets> {
        self.family.get_or_init(|| Family::new_with_constructor(self.buckets))
    }

    /// Adds a value.
    pub fn observe(&self, values: [&str; N], value: f64) {
        self.family().get_or_create(&self.about.series(values)).observe(value);
    }
}

impl<const N: usize> Metric for Histogram<N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> &'static str {
        "histogram"
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(self.name(), self.help(), self.family().clone());
    }
}

/// Declares statics, and `ALL`, the table of them. The doc comment, one line, is the metric's help text.
macro_rules! metrics {
    ($(#[doc = $help:literal] $id:ident: $kind:ident = $name:literal [$($label:literal),*] $(in $buckets:expr)?;)*) => {
        $(
            #[doc = $help]
            pub static $id: super::metric::$kind<{ <[&str]>::len(&[$($label),*]) }> =
                super::metric::$kind::new(
                    super::metric::About { name: $name, labels: &[$($label),*], help: $help }
                    $(, super::metric::Buckets($buckets))?
                );
        )*

        /// The metrics of this file.
        pub(crate) static ALL: &[&dyn super::metric::Metric] = &[$(&$id),*];
    };
}

pub(crate) use metrics;
