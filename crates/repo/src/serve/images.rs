//! Images and pushes: what is answered whole.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use vireo_wire::api::{FramesQuery, FramesReply, ImageList, ImageLog, PushReply, VerifyReply};
use vireo_wire::limits::MAX_FRAMES_ASKED;

use super::auth::Known;
use super::reply::{self, Failure};
use super::{App, blocking};
use crate::repository::Repository;

/// Public: it is what tokens pin, and nothing else can be checked before it is known.
pub(super) async fn ca(State(app): State<Arc<App>>) -> String {
    app.repository.ca_pem().to_owned()
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    known: Known,
) -> Result<Json<ImageList>, Failure> {
    known.admin()?;
    let images = blocking(&app, "list the images", |repository| repository.images()).await?;
    Ok(Json(ImageList { images }))
}

pub(super) async fn log(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    known: Known,
) -> Result<Json<ImageLog>, Failure> {
    let image = reply::image(&name)?;
    known.reader_of(&image)?;
    blocking(&app, &format!("log of {name}"), move |repository| repository.log(&image))
        .await
        .map(Json)
}

pub(super) async fn tree(
    State(app): State<Arc<App>>,
    Path((name, version)): Path<(String, String)>,
    known: Known,
) -> Result<Vec<u8>, Failure> {
    let image = reply::image(&name)?;
    let version = reply::version(&version)?;
    known.reader_of(&image)?;
    let request = format!("tree of {name}, version {version}");
    blocking(&app, &request, move |repository| repository.tree_listing(&image, version)).await
}

pub(super) async fn verify(
    State(app): State<Arc<App>>,
    Path((name, version)): Path<(String, String)>,
    known: Known,
) -> Result<Json<VerifyReply>, Failure> {
    known.admin()?;
    let image = reply::image(&name)?;
    let version = reply::version(&version)?;
    let request = format!("verify {name}");
    blocking(&app, &request, move |repository| repository.verify(&image, version)).await.map(Json)
}

pub(super) async fn missing_frames(
    State(app): State<Arc<App>>,
    known: Known,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<FramesReply>, Failure> {
    known.admin()?;
    let query: FramesQuery = reply::json(body)?;
    if query.frames.len() > MAX_FRAMES_ASKED {
        return Err(Failure::refused(format!(
            "more than {MAX_FRAMES_ASKED} frames in one question"
        )));
    }
    let missing =
        move |repository: &Repository| repository.missing_frames(query.bundle, &query.frames);
    let missing = blocking(&app, "missing frames", missing).await?;
    Ok(Json(FramesReply { missing }))
}

pub(super) async fn put_frame(
    State(app): State<Arc<App>>,
    Path((bundle, frame)): Path<(String, String)>,
    known: Known,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Failure> {
    known.admin()?;
    let (bundle, frame) = (reply::digest(&bundle)?, reply::digest(&frame)?);
    let content = reply::body(body)?;
    let put = move |repository: &Repository| repository.put_frame(bundle, frame, &content);
    blocking(&app, &format!("frame of bundle {bundle}"), put).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn push(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    known: Known,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PushReply>, Failure> {
    known.admin()?;
    let image = reply::image(&name)?;
    let options = reply::options(&headers)?;
    let head = reply::body(body)?;
    let push = move |repository: &Repository| repository.push_head(&image, &head, options);
    let pushed = blocking(&app, &format!("push to {name}"), push).await?;
    if !pushed.already {
        app.has_published();
    }
    Ok(Json(pushed))
}
