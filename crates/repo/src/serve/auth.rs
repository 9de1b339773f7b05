//! Who asks, and whether they may.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use vireo_model::ImageName;
use vireo_wire::Secret;
use vireo_wire::api::InstanceId;

use super::reply::Failure;
use super::{App, blocking};
use crate::fleet::Caller;

/// The caller of a request; a request without a known credential is refused before anything else.
pub(super) struct Known(pub(super) Caller);

impl FromRequestParts<Arc<App>> for Known {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let secret = bearer(parts).ok_or_else(Failure::unknown_caller)?;
        let caller =
            blocking(app, "look a token up", move |repository| repository.caller(&secret)).await?;
        caller.map(Known).ok_or_else(Failure::unknown_caller)
    }
}

fn bearer(parts: &Parts) -> Option<Secret> {
    let text = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
    text.strip_prefix("Bearer ")?.parse().ok()
}

impl Known {
    /// Administrators only.
    pub(super) fn admin(&self) -> Result<(), Failure> {
        match self.0 {
            Caller::Admin => Ok(()),
            _ => Err(Failure::forbidden("only the administrator's token is good for this")),
        }
    }

    /// Whoever has to do with an image.
    pub(super) fn reader_of(&self, name: &ImageName) -> Result<(), Failure> {
        let own = match &self.0 {
            Caller::Admin | Caller::Enroll { image: None } => return Ok(()),
            Caller::Enroll { image: Some(own) } | Caller::Instance { image: own, .. } => own,
        };
        if own == name {
            return Ok(());
        }
        Err(Failure::forbidden(format!("this token is for image {own} alone")))
    }

    /// Whoever may enrol machines for an image.
    pub(super) fn enroller_of(&self, name: &ImageName) -> Result<(), Failure> {
        match &self.0 {
            Caller::Enroll { .. } => self.reader_of(name),
            _ => Err(Failure::forbidden(
                "only an enrolment token enrols; `vireo-repo token create` makes one",
            )),
        }
    }

    /// That instance itself.
    pub(super) fn is(&self, instance: &InstanceId) -> Result<(), Failure> {
        match &self.0 {
            Caller::Instance { id, .. } if id == instance => Ok(()),
            _ => Err(Failure::forbidden("only that instance itself may do this")),
        }
    }
}
