//! Failed replies, and reading requests so that what is wrong with them is said as one.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use vireo_model::{Digest, ImageName};
use vireo_wire::ErrorKind as Wire;
use vireo_wire::api::{ErrorReply, InstanceId, OPTIONS_HEADER};
use vireo_wire::limits::MAX_OPTIONS_LEN;

use crate::error::{ErrorKind, RepoError};

/// A failed reply.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    reply: ErrorReply,
}

impl Failure {
    fn new(status: StatusCode, kind: Wire, message: impl Into<String>) -> Self {
        Self { status, reply: ErrorReply { kind, message: message.into(), conflict: None } }
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, Wire::Refused, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Wire::NotFound, message)
    }

    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Wire::Protocol, message)
    }

    /// No credential, or none that is known.
    pub(super) fn unknown_caller() -> Self {
        let message = "the token is not known here; get one with `vireo-repo token create`, or use the \
                       administrator's in the repository's file admin-token";
        Self::new(StatusCode::UNAUTHORIZED, Wire::Unauthorised, message)
    }

    /// A known caller that may not do this.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Wire::Unauthorised, message)
    }

    /// Whether the server itself failed, so that its log should say so.
    pub(super) fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    pub(super) fn message(&self) -> &str {
        &self.reply.message
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        let (status, kind) = match error.kind() {
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, Wire::NotFound),
            ErrorKind::Conflict => (StatusCode::CONFLICT, Wire::Conflict),
            ErrorKind::Busy => (StatusCode::LOCKED, Wire::Busy),
            ErrorKind::Incomplete => (StatusCode::FAILED_DEPENDENCY, Wire::Incomplete),
            ErrorKind::Refused | ErrorKind::Untrusted | ErrorKind::Unsupported => {
                (StatusCode::UNPROCESSABLE_ENTITY, Wire::Refused)
            }
            ErrorKind::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, Wire::Server),
            ErrorKind::Io | ErrorKind::NoRoot | ErrorKind::Corrupt => {
                (StatusCode::INTERNAL_SERVER_ERROR, Wire::Server)
            }
        };
        let conflict = error.conflict();
        Self { status, reply: ErrorReply { kind, message: error.chain(), conflict } }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.reply)).into_response()
    }
}

/// A body, whole; the route's limit has been applied.
pub(super) fn body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Failure> {
    body.map_err(|rejection| {
        let message = format!("cannot read the request's body: {}", rejection.body_text());
        Failure::new(rejection.status(), Wire::Refused, message)
    })
}

/// What a request asks for besides, in its header; all is as by default without it.
pub(super) fn options<O: DeserializeOwned + Default>(headers: &HeaderMap) -> Result<O, Failure> {
    let Some(header) = headers.get(OPTIONS_HEADER) else { return Ok(O::default()) };
    if header.len() > MAX_OPTIONS_LEN {
        let message = format!("the header {OPTIONS_HEADER} is longer than {MAX_OPTIONS_LEN} bytes");
        return Err(Failure::refused(message));
    }
    serde_json::from_slice(header.as_bytes()).map_err(|error| {
        Failure::refused(format!("the header {OPTIONS_HEADER} is not the expected JSON: {error}"))
    })
}

/// A JSON message.
pub(super) fn json<R: DeserializeOwned>(
    bytes: Result<Bytes, BytesRejection>,
) -> Result<R, Failure> {
    serde_json::from_slice(&body(bytes)?)
        .map_err(|error| Failure::refused(format!("the request is not the expected JSON: {error}")))
}

pub(super) fn image(text: &str) -> Result<ImageName, Failure> {
    text.parse().map_err(|error: vireo_model::NameError| Failure::refused(error.to_string()))
}

pub(super) fn version(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| Failure::refused(format!("{text:?} is no version number")))
}

pub(super) fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|error: vireo_model::DigestError| Failure::refused(error.to_string()))
}

pub(super) fn instance(text: &str) -> Result<InstanceId, Failure> {
    text.parse().map_err(|_| Failure::not_found("there is no such instance"))
}
