//! Traces, exported with OTLP over HTTP if the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`). The spans
//! of `tracing` are the spans of the traces; a W3C `traceparent` connects those of different processes.

use std::{collections::HashMap, error::Error, time::Duration};

use async_trait::async_trait;
use opentelemetry::{
    propagation::TextMapPropagator,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tokio::runtime::{Builder, Runtime};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

/// The header, and the field of a carrier. Source: W3C Trace Context, section 3.2.
pub const TRACEPARENT: &str = "traceparent";

/// The variables of which one names the collector. Source: OpenTelemetry specification, OTLP exporter configuration.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The timeout of a request to the collector.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The time that the last spans have to be exported at the end of the process.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// The export of traces. The last spans are exported when it is dropped.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the export of `program`'s traces; `None`: the environment names no collector.
    ///
    /// # Errors
    /// The collector's address is invalid, or a thread cannot be started.
    pub(crate) fn open(program: &'static str) -> Result<Option<Self>, Box<dyn Error + Send + Sync>> {
        if !ENDPOINTS.into_iter().any(is_set) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().with_http_client(Collector::new()?).build()?;
        let resource = Resource::builder();
        let resource = if is_set("OTEL_SERVICE_NAME") { resource } else { resource.with_service_name(program) };
        let provider =
            SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
        Ok(Some(Self { provider }))
    }

    /// Returns the layer that turns the spans of `tracing` into spans of traces.
    pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> OpenTelemetryLayer<S, SdkTracer> {
        let layer = tracing_opentelemetry::layer().with_tracer(self.provider.tracer("attune"));
        layer.with_location(false).with_threads(false).with_tracked_inactivity(false)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // Nothing can be done about spans that the collector does not take.
        let _ = self.provider.shutdown_with_timeout(LAST_EXPORT);
    }
}

#[expect(clippy::disallowed_methods, reason = "OpenTelemetry defines the variables, and its SDK reads the others")]
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Returns the `traceparent` of the current span; `None`: there is none, or no traces are exported.
#[must_use]
pub fn traceparent() -> Option<String> {
    let mut carrier = HashMap::<String, String>::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Makes a span, which has not been entered yet, a child of the span that `traceparent` names. An invalid name is
/// ignored.
pub fn continue_trace(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    if context.span().span_context().is_remote() {
        // The only other error is that no traces are exported.
        let _ = span.set_parent(context);
    }
}

/// The HTTP client of the export. It has a thread of its own: the exporter's thread belongs to no runtime.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    /// Always there until the drop.
    runtime: Option<Runtime>,
}

impl Collector {
    fn new() -> Result<Self, Box<dyn Error + Send + Sync>> {
        // The only error is that a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || reqwest::Client::builder().timeout(ANSWERS_WITHIN);
        // Without root certificates, plain `http` addresses can still be reached.
        let client = builder().build().or_else(|_| builder().tls_certs_only([]).build())?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("traces").enable_all().build()?;
        Ok(Self { client, runtime: Some(runtime) })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // The ordinary drop waits, which a thread of another runtime must not do.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let runtime = self.runtime.as_ref().ok_or("the export has ended")?;
        let client = self.client.clone();
        let sent = runtime.spawn(async move {
            let answer = client.execute(request).await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let mut response = Response::new(answer.bytes().await?);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            Ok::<_, reqwest::Error>(response)
        });
        Ok(sent.await??)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// Runs `work` in a process that exports traces.
    fn with_traces<T>(work: impl FnOnce() -> T) -> T {
        let traces = Traces { provider: SdkTracerProvider::builder().build() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), work)
    }

    #[test]
    fn a_span_continues_the_trace_of_another_process() {
        let own = with_traces(|| {
            let span = tracing::info_span!("request");
            continue_trace(&span, PARENT);
            span.in_scope(|| tracing::info_span!("inner").in_scope(traceparent))
        });
        let own = own.unwrap();
        assert_eq!((own.len(), &own[..36], &own[52..]), (55, &PARENT[..36], "-01"), "{own}");
        assert_ne!(own[36..52], PARENT[36..52]);
    }

    #[test]
    fn an_invalid_name_begins_a_trace_of_its_own() {
        let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        for invalid in ["", "00-1-2-01", "what", zeros.as_str()] {
            let own = with_traces(|| {
                let span = tracing::info_span!("request");
                continue_trace(&span, invalid);
                span.in_scope(traceparent)
            });
            assert!(own.is_some_and(|own| own.len() == 55), "{invalid}");
        }
    }

    #[test]
    fn without_traces_there_is_no_name() {
        let span = tracing::info_span!("request");
        continue_trace(&span, PARENT);
        assert_eq!(span.in_scope(traceparent), None);
    }
}
