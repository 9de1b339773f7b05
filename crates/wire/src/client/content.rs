//! Whole images up and down, and bundles down: transfers that are streamed to and from files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Body, Method, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use vireo_model::{Digest, ImageName};

use super::{Client, Progress, Repeat};
use crate::api::{CreateImage, IMAGE_BYTES_HEADER, OPTIONS_HEADER, VersionEntry};
use crate::disk;
use crate::error::{ErrorKind, WireError};
use crate::limits::{MAX_IMAGE_LEN, UPLOAD_TIMEOUT};
use crate::pipe::{self, PipeReader, PipeWriter};

/// How often an upload reports progress.
const TICK: Duration = Duration::from_millis(100);

impl Client {
    /// Creates `image` from the raw disk image in the file `disk`: compresses and sends it; the
    /// answer comes when the server has read its tree and published version 1.
    ///
    /// `progress` counts bytes of the raw image. Not repeated by itself. Whether there is such an
    /// image is asked first, so that nothing is sent in vain.
    ///
    /// # Errors
    ///
    /// `Conflict` if there is such an image already, `Refused` if the disk image has no tree that
    /// Vireo can read, `Local` if `disk` cannot be read.
    pub async fn create_image(
        &self,
        image: &ImageName,
        disk: &Path,
        options: &CreateImage,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<VersionEntry, WireError> {
        let step = "create the image";
        match self.log(image).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => {
                let message = format!(
                    "cannot {step} at {}: there is an image {image} already; push a bundle to it, or take \
                     another name",
                    self.url()
                );
                return Err(WireError::new(ErrorKind::Conflict, message));
            }
        }
        let file = File::open(disk).map_err(local("open the disk image", disk))?;
        let total = file.metadata().map_err(local("read the disk image", disk))?.len();
        let header = serde_json::to_vec(options)
            .map_err(|error| self.protocol(step, "its options are no JSON").caused_by(error))?;
        let read = Arc::new(AtomicU64::new(0));
        let body = packed_body(CountingReader { file, read: Arc::clone(&read) });
        let call = self
            .request(&self.calls, Method::POST, &["images", image.as_str()])
            .timeout(UPLOAD_TIMEOUT)
            .header(OPTIONS_HEADER, header)
            .body(body);
        let mut sending = std::pin::pin!(self.send_once(step, call));
        let mut ticks = tokio::time::interval(TICK);
        let response = loop {
            tokio::select! {
                response = &mut sending => break response?,
                _ = ticks.tick() => {
                    progress(Progress { done: read.load(Ordering::Relaxed), total: Some(total) });
                }
            }
        };
        progress(Progress { done: total, total: Some(total) });
        self.json(step, response).await
    }

    /// Downloads the raw disk image of a version to the file `to`, with its holes.
    ///
    /// Written to `to` with `.part` added, synced, then renamed over `to`: `to` is absent, as it was
    /// before, or complete. `progress` counts compressed bytes.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version, `Local` if the file cannot be written.
    pub async fn export_image(
        &self,
        image: &ImageName,
        version: u64,
        to: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<u64, WireError> {
        let step = "export the image";
        let path = ["images", image.as_str(), "versions", &version.to_string(), "disk"];
        let request = || self.request(&self.streams, Method::GET, &path);
        let response = self.send(step, Repeat::Yes, request).await?;
        let expected = header_number(&response, IMAGE_BYTES_HEADER)
            .ok_or_else(|| self.protocol(step, "it does not say how long the image is"))?;
        let part = part_path(to);
        let file = File::create(&part).map_err(local("create", &part))?;
        let file = Arc::new(file);
        let (sender, receiver) = mpsc::channel(pipe::DEPTH);
        let out = Arc::clone(&file);
        let unpacking = spawn_blocking(move || {
            disk::unpack(PipeReader::new(receiver), &out, expected.min(MAX_IMAGE_LEN))
        });
        let received = self.forward(step, response, &sender, progress).await;
        drop(sender);
        let unpacked = joined(unpacking.await, "write", &part);
        received?;
        let len = unpacked?;
        if len != expected {
            return Err(self.protocol(step, &format!("it sent {len} of {expected} bytes")));
        }
        finish(file, part, to.to_owned()).await?;
        Ok(len)
    }

    /// Hands every piece of `response` to `sender`. Ends without error when the other side has
    /// stopped: it then knows why.
    async fn forward(
        &self,
        step: &str,
        mut response: Response,
        sender: &mpsc::Sender<io::Result<Vec<u8>>>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), WireError> {
        let mut done = 0;
        loop {
            match response.chunk().await {
                Ok(None) => return Ok(()),
                Ok(Some(piece)) => {
                    done += piece.len() as u64;
                    progress(Progress { done, total: None });
                    if sender.send(Ok(piece.to_vec())).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    // Without it the end of the channel would look like the end of the data.
                    let _ = sender.send(Err(io::Error::other("the connection broke"))).await;
                    return Err(self.transport(step, error));
                }
            }
        }
    }

    /// Downloads a bundle of `file_len` bytes to the file `to`, and goes on where an earlier call
    /// stopped. If `to` is there with that length, nothing is fetched.
    ///
    /// Written to `to` with `.part` added, synced, then renamed. The length is checked here; the
    /// content is not: only `Bundle::verify` shows that it is the bundle. If that says it is
    /// corrupt, remove the file and call again.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such bundle, `Local` if the file cannot be written, `Unreachable`
    /// if the connection breaks: call again to go on.
    pub async fn download_bundle(
        &self,
        bundle: Digest,
        file_len: u64,
        to: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), WireError> {
        if fs::metadata(to).is_ok_and(|there| there.len() == file_len) {
            return Ok(());
        }
        let part = part_path(to);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&part)
            .map_err(local("create", &part))?;
        let mut have = file.metadata().map_err(local("read", &part))?.len();
        if have > file_len {
            file.set_len(0).map_err(local("shorten", &part))?;
            have = 0;
        }
        if have < file_len {
            self.fetch_rest(bundle, have, file_len, &file, &part, progress).await?;
        }
        finish(Arc::new(file), part, to.to_owned()).await
    }

    async fn fetch_rest(
        &self,
        bundle: Digest,
        have: u64,
        file_len: u64,
        mut file: &File,
        part: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), WireError> {
        let step = "download the bundle";
        let path = ["bundles", &bundle.to_string()];
        let request = || {
            self.request(&self.streams, Method::GET, &path).header(RANGE, format!("bytes={have}-"))
        };
        let mut response = self.send(step, Repeat::Yes, request).await?;
        let mut done = have;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            file.set_len(0).map_err(local("shorten", part))?;
            done = 0;
        }
        if whole_len(&response) != Some(file_len) {
            return Err(self.protocol(
                step,
                &format!("the bundle does not have the {file_len} bytes announced"),
            ));
        }
        while let Some(piece) =
            response.chunk().await.map_err(|error| self.transport(step, error))?
        {
            done += piece.len() as u64;
            if done > file_len {
                break;
            }
            // A write of some hundred KiB into the page cache: not worth a thread of its own.
            file.write_all(&piece).map_err(local("write", part))?;
            progress(Progress { done, total: Some(file_len) });
        }
        if done == file_len {
            return Ok(());
        }
        let message = format!(
            "cannot {step} from {}: {done} of {file_len} bytes came; try again to go on",
            self.url()
        );
        Err(WireError::new(ErrorKind::Unreachable, message))
    }
}

/// Counts what is read, for progress.
struct CountingReader {
    file: File,
    read: Arc<AtomicU64>,
}

impl io::Read for CountingReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(out)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// A request's body: `image`, compressed on a thread of its own.
fn packed_body(mut image: CountingReader) -> Body {
    let (sender, receiver) = mpsc::channel(pipe::DEPTH);
    let failed = sender.clone();
    spawn_blocking(move || {
        if let Err(error) = disk::pack(&mut image, PipeWriter::new(sender)) {
            // If the connection is gone, nobody wants to know.
            let _ = failed.blocking_send(Err(error));
        }
    });
    Body::wrap_stream(stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

/// Syncs `part`, gives it its name, and syncs the directory.
async fn finish(file: Arc<File>, part: PathBuf, to: PathBuf) -> Result<(), WireError> {
    let name = to.clone();
    let finishing = spawn_blocking(move || {
        file.sync_all()?;
        fs::rename(&part, &to)?;
        let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    });
    joined(finishing.await, "finish", &name)
}

fn joined<T>(
    outcome: Result<io::Result<T>, tokio::task::JoinError>,
    step: &'static str,
    path: &Path,
) -> Result<T, WireError> {
    outcome.map_err(io::Error::other).and_then(|inner| inner).map_err(local(step, path))
}

fn local(step: &'static str, path: &Path) -> impl Fn(io::Error) -> WireError {
    move |error| {
        let message = format!("cannot {step} {}", path.display());
        WireError::new(ErrorKind::Local, message).caused_by(error)
    }
}

fn part_path(to: &Path) -> PathBuf {
    to.with_added_extension("part")
}

/// Length of the whole file, from a complete or a partial reply.
fn whole_len(response: &Response) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return header_number(response, CONTENT_LENGTH.as_str());
    }
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit_once('/')?.1.parse().ok()
}

fn header_number(response: &Response, name: &str) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}
