//! The replies of the HTTP port.

use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName},
};

use super::Verdict;

/// What a handler gives back; building it fails never, since all parts are constants.
pub type Result = http::Result<Response<Full<Bytes>>>;

const TEXT: &str = "text/plain; charset=utf-8";
/// What the encoder of prometheus-client writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub fn verdict(verdict: Verdict) -> Result {
    match verdict {
        Verdict::Ok => build(StatusCode::OK, (CONTENT_TYPE, TEXT), "ok\n".to_owned()),
        Verdict::No(reason) => {
            build(StatusCode::SERVICE_UNAVAILABLE, (CONTENT_TYPE, TEXT), format!("{reason}\n"))
        }
    }
}

pub fn metrics(text: String) -> Result {
    build(StatusCode::OK, (CONTENT_TYPE, OPENMETRICS), text)
}

pub fn not_found() -> Result {
    let text = "not here; there are /livez, /readyz and /metrics\n".to_owned();
    build(StatusCode::NOT_FOUND, (CONTENT_TYPE, TEXT), text)
}

pub fn method_not_allowed() -> Result {
    build(StatusCode::METHOD_NOT_ALLOWED, (ALLOW, "GET, HEAD"), String::new())
}

fn build(status: StatusCode, (name, value): (HeaderName, &'static str), body: String) -> Result {
    Response::builder()
        .status(status)
        .header(name, value)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::from(body)))
}
