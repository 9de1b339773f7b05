//! Pushing: questions about missing frames, the frames, the head.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use vireo_delta::{Bundle, Head, TrustedKeys};
use vireo_model::{Digest, ImageName};

use super::{Client, Progress, Repeat};
use crate::api::{FramesQuery, FramesReply, OPTIONS_HEADER, PushOptions, PushReply};
use crate::error::{ErrorKind, WireError};
use crate::limits::{BUILD_TIMEOUT, FRAME_TIMEOUT, MAX_FRAMES_ASKED};

/// How many frames travel at the same time: hides latency, needs at most 32 MiB.
const FRAMES_AT_ONCE: usize = 4;

/// How often a push starts over when frames vanished from the server between sending and use.
const ROUNDS_MAX: usize = 3;

impl Client {
    /// Pushes a bundle, given as its file's bytes, onto `image`: sends the frames that the
    /// repository lacks, then the head; the answer comes when the image is built and published.
    ///
    /// Can be repeated after any failure: what arrived is kept, and pushing what is the newest
    /// version already says so. `progress` counts the bytes of frames to be sent.
    ///
    /// # Errors
    ///
    /// `Refused` if the bytes are no bundle, or the signer is not trusted, or the image does not
    /// take the update; `NotFound` if there is no such image; `Conflict`, with
    /// [`WireError::conflict`], if the bundle was made for another version than the newest.
    pub async fn push_bundle(
        &self,
        image: &ImageName,
        bundle: &[u8],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PushReply, WireError> {
        self.push_bundle_with(image, bundle, PushOptions::default(), progress).await
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// As [`Client::push_bundle`].
    pub async fn push_bundle_with(
        &self,
        image: &ImageName,
        bundle: &[u8],
        options: PushOptions,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PushReply, WireError> {
        let (head, frames) = self.take_apart(bundle)?;
        let mut round = 1;
        loop {
            self.send_frames(&head, &frames, progress).await?;
            match self.send_head(image, &bundle[..head_len(&head)], options).await {
                Err(error) if error.kind() == ErrorKind::Incomplete && round < ROUNDS_MAX => {
                    round += 1
                }
                outcome => return outcome,
            }
        }
    }

    /// The head, and each frame's bytes.
    fn take_apart<'b>(
        &self,
        bundle: &'b [u8],
    ) -> Result<(Head, HashMap<Digest, &'b [u8]>), WireError> {
        let refuse = |error| {
            let message = format!(
                "cannot push to {}: the file is no usable bundle; capture it again",
                self.url()
            );
            WireError::new(ErrorKind::Refused, message).caused_by(error)
        };
        let signer = Bundle::open(bundle).map_err(refuse)?.signer();
        // Whether the signer may push is the server's decision; here the signature shows that the
        // file is whole.
        let trusted: TrustedKeys = [signer].into_iter().collect();
        let head = Head::read(bundle, &trusted).map_err(refuse)?;
        let mut rest = &bundle[head_len(&head)..];
        let mut frames = HashMap::new();
        for frame in &head.frames {
            let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
            let Some((bytes, after)) = rest.split_at_checked(len) else {
                let message = format!(
                    "cannot push to {}: the bundle's file is cut; capture it again",
                    self.url()
                );
                return Err(WireError::new(ErrorKind::Refused, message));
            };
            frames.insert(frame.digest, bytes);
            rest = after;
        }
        Ok((head, frames))
    }

    async fn send_frames(
        &self,
        head: &Head,
        frames: &HashMap<Digest, &[u8]>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), WireError> {
        let missing = self.missing_frames(head).await?;
        let missing: Vec<(Digest, &[u8])> = missing
            .into_iter()
            .filter_map(|digest| frames.get(&digest).map(|bytes| (digest, *bytes)))
            .collect();
        let total = missing.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let mut done = 0;
        progress(Progress { done, total: Some(total) });
        let mut sending = stream::iter(missing)
            .map(|(digest, bytes)| self.send_frame(head.digest, digest, bytes))
            .buffer_unordered(FRAMES_AT_ONCE);
        while let Some(len) = sending.try_next().await? {
            done += len;
            progress(Progress { done, total: Some(total) });
        }
        Ok(())
    }

    async fn missing_frames(&self, head: &Head) -> Result<Vec<Digest>, WireError> {
        let mut seen = HashSet::new();
        let distinct: Vec<Digest> = head
            .frames
            .iter()
            .map(|frame| frame.digest)
            .filter(|digest| seen.insert(*digest))
            .collect();
        let mut missing = Vec::new();
        for frames in distinct.chunks(MAX_FRAMES_ASKED) {
            let query = FramesQuery { bundle: head.digest, frames: frames.to_vec() };
            let reply: FramesReply = self
                .post("ask which frames are missing", &["frames", "missing"], &query, Repeat::Yes)
                .await?;
            missing.extend(reply.missing);
        }
        Ok(missing)
    }

    async fn send_frame(
        &self,
        bundle: Digest,
        frame: Digest,
        bytes: &[u8],
    ) -> Result<u64, WireError> {
        let path = ["incoming", &bundle.to_string(), "frames", &frame.to_string()];
        let request = || {
            self.request(&self.calls, Method::PUT, &path)
                .timeout(FRAME_TIMEOUT)
                .body(bytes.to_vec())
        };
        self.send("send a frame", Repeat::Yes, request).await?;
        Ok(bytes.len() as u64)
    }

    async fn send_head(
        &self,
        image: &ImageName,
        head: &[u8],
        options: PushOptions,
    ) -> Result<PushReply, WireError> {
        let step = "push the bundle";
        let options = serde_json::to_vec(&options)
            .map_err(|error| self.protocol(step, "its options are no JSON").caused_by(error))?;
        let path = ["images", image.as_str(), "versions"];
        let request = || {
            self.request(&self.calls, Method::POST, &path)
                .timeout(BUILD_TIMEOUT)
                .header(OPTIONS_HEADER, options.as_slice())
                .body(head.to_vec())
        };
        let response = self.send(step, Repeat::Yes, request).await?;
        self.json(step, response).await
    }
}

fn head_len(head: &Head) -> usize {
    usize::try_from(head.head_len).unwrap_or(usize::MAX)
}
