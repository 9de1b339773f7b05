//! Instances: enrolment, the long poll, receipts.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use vireo_wire::api::{EnrollReply, EnrollRequest, InstanceList, Next, ReceiptPost};
use vireo_wire::limits::WAIT_MAX;

use super::auth::Known;
use super::reply::{self, Failure};
use super::{App, blocking};
use crate::fleet::Caller;

/// How often a long poll looks even when nobody wakes it: versions can also be published by
/// another process on the same directory.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

pub(super) async fn enroll(
    State(app): State<Arc<App>>,
    known: Known,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<EnrollReply>, Failure> {
    let request: EnrollRequest = reply::json(body)?;
    known.enroller_of(&request.image)?;
    blocking(&app, "enrol", move |repository| repository.enroll(&request)).await.map(Json)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    known: Known,
) -> Result<Json<InstanceList>, Failure> {
    known.admin()?;
    let instances =
        blocking(&app, "list the instances", |repository| repository.instances()).await?;
    Ok(Json(InstanceList { instances }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NextQuery {
    have: String,
    #[serde(default)]
    wait: u64,
}

pub(super) async fn next(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    known: Known,
    query: Result<Query<NextQuery>, QueryRejection>,
) -> Result<Json<Next>, Failure> {
    let id = reply::instance(&id)?;
    known.is(&id)?;
    let Query(query) = query.map_err(|rejection| Failure::refused(rejection.body_text()))?;
    let have = reply::digest(&query.have)?;
    let deadline = Instant::now() + Duration::from_secs(query.wait).min(WAIT_MAX);
    // Subscribed before the first look, so that nothing falls between.
    let mut published = app.published.subscribe();
    let mut stopping = app.stopping.subscribe();
    let request = format!("next of {id}");
    loop {
        let asked = id.clone();
        let next =
            blocking(&app, &request, move |repository| repository.next(&asked, have)).await?;
        let now = Instant::now();
        if matches!(next, Next::Update { .. }) || now >= deadline || *stopping.borrow() {
            return Ok(Json(next));
        }
        // Both ends of a channel closing would mean that the server is gone.
        tokio::select! {
            _ = published.changed() => {}
            _ = stopping.changed() => {}
            () = sleep_until(deadline.min(now + POLL_INTERVAL)) => {}
        }
    }
}

pub(super) async fn receipt(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    known: Known,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Failure> {
    let id = reply::instance(&id)?;
    known.is(&id)?;
    let post: ReceiptPost = reply::json(body)?;
    let request = format!("receipt of {id}");
    blocking(&app, &request, move |repository| repository.receipt(&id, post)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn last_receipt(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    known: Known,
) -> Result<Json<ReceiptPost>, Failure> {
    let id = reply::instance(&id)?;
    if known.0 != Caller::Admin {
        known.is(&id)?;
    }
    let request = format!("last receipt of {id}");
    blocking(&app, &request, move |repository| repository.last_receipt(&id)).await.map(Json)
}
