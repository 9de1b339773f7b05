//! Disk images and bundles: bodies that are streamed.

use std::fs::File;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;
use vireo_wire::api::{CreateImage, IMAGE_BYTES_HEADER, VersionEntry};
use vireo_wire::disk as wire_disk;
use vireo_wire::limits::STALL_TIMEOUT;
use vireo_wire::pipe::{self, PipeReader, PipeWriter};

use super::auth::Known;
use super::reply::{self, Failure};
use super::{App, blocking, note};
use crate::error::RepoError;
use crate::fleet::Caller;
use crate::repository::Repository;

/// Pieces in which a bundle is sent, in bytes.
const PIECE_LEN: usize = 256 << 10;

const OCTETS: (axum::http::HeaderName, &str) = (CONTENT_TYPE, "application/octet-stream");

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    known: Known,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<VersionEntry>, Failure> {
    known.admin()?;
    let image = reply::image(&name)?;
    let options: CreateImage = reply::options(&headers)?;
    let (sender, receiver) = mpsc::channel(pipe::DEPTH);
    tokio::spawn(receive(body, sender));
    let created = blocking(&app, &format!("create {name}"), move |repository| {
        repository.create_image_from(&image, PipeReader::new(receiver), &options)
    })
    .await?;
    app.has_published();
    Ok(Json(created))
}

/// Hands the body's pieces to a blocking reader, until it stops. A client that stalls is taken for
/// gone: it holds the image's lock.
async fn receive(body: Body, sender: mpsc::Sender<io::Result<axum::body::Bytes>>) {
    let mut pieces = body.into_data_stream();
    loop {
        let piece = match tokio::time::timeout(STALL_TIMEOUT, pieces.next()).await {
            Ok(None) => return,
            Ok(Some(piece)) => piece.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending")),
        };
        let last = piece.is_err();
        if sender.send(piece).await.is_err() || last {
            return;
        }
    }
}

pub(super) async fn disk(
    State(app): State<Arc<App>>,
    Path((name, version)): Path<(String, String)>,
    known: Known,
) -> Result<Response, Failure> {
    known.admin()?;
    let image = reply::image(&name)?;
    let version = reply::version(&version)?;
    let request = format!("disk of {name}, version {version}");
    let disk = move |repository: &Repository| repository.disk(&image, version);
    let (path, len) = blocking(&app, &request, disk).await?;
    let mut file = open(&app, &request, path).await?;
    let (sender, receiver) = mpsc::channel(pipe::DEPTH);
    spawn_blocking(move || {
        if let Err(error) = wire_disk::pack(&mut file, PipeWriter::new(sender.clone())) {
            // Breaks the reply off, so that nobody takes it for whole; a client that is gone
            // does not mind.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces =
        stream::unfold(receiver, |mut receiver: mpsc::Receiver<io::Result<Vec<u8>>>| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
    let headers = [OCTETS, (axum::http::HeaderName::from_static(IMAGE_BYTES_HEADER), "")];
    let mut response = (headers, Body::from_stream(pieces)).into_response();
    response.headers_mut().insert(IMAGE_BYTES_HEADER, len.into());
    Ok(response)
}

pub(super) async fn bundle(
    State(app): State<Arc<App>>,
    Path(digest): Path<String>,
    known: Known,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let digest = reply::digest(&digest)?;
    let caller = known.0;
    let request = format!("bundle {digest}");
    let (path, len) = blocking(&app, &request, move |repository| {
        let may = match &caller {
            Caller::Admin => true,
            Caller::Instance { image, .. } => repository.has_bundle(image, digest)?,
            Caller::Enroll { .. } => false,
        };
        if may { repository.bundle(digest).map(Some) } else { Ok(None) }
    })
    .await?
    .ok_or_else(|| Failure::not_found(format!("there is no bundle {digest} for this image")))?;
    let start = range_start(&headers).unwrap_or(0);
    if start > len {
        let range = [(CONTENT_RANGE, format!("bytes */{len}"))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range).into_response());
    }
    let mut file = tokio::fs::File::from_std(open(&app, &request, path).await?);
    let failed = |error: io::Error| {
        let error = RepoError::internal(format!("cannot read the bundle: {error}"));
        let failure = Failure::from(error);
        note(&app, &request, &failure);
        failure
    };
    file.seek(SeekFrom::Start(start)).await.map_err(failed)?;
    // `take`: what a length was promised for is what is sent.
    let pieces = ReaderStream::with_capacity(file.take(len - start), PIECE_LEN);
    let common = [OCTETS, (ACCEPT_RANGES, "bytes")];
    let length = [(CONTENT_LENGTH, (len - start).to_string())];
    let body = Body::from_stream(pieces);
    if start == 0 {
        return Ok((common, length, body).into_response());
    }
    let range = [(CONTENT_RANGE, format!("bytes {start}-{}/{len}", len.saturating_sub(1)))];
    Ok((StatusCode::PARTIAL_CONTENT, common, length, range, body).into_response())
}

/// The start of `bytes=N-`; other ranges are ignored, as RFC 9110 (14.2) allows.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

async fn open(app: &Arc<App>, request: &str, path: PathBuf) -> Result<File, Failure> {
    let open = move |_: &Repository| {
        File::open(&path).map_err(|error| {
            RepoError::internal(format!("cannot open {}: {error}", path.display()))
        })
    };
    blocking(app, request, open).await
}
