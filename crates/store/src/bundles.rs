//! Bundles: frames that arrive, the bundle that they become, and frames found in stored ones.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use vireo_delta::{Bundle, Head, TrustedKeys};
use vireo_model::Digest;
use vireo_sys::{Mapped, map_sealed};

use crate::error::{Detail, StoreError, io_error};
use crate::{Store, locked, names_in, read_bounded};

/// Longest frame that is read, in bytes.
const MAX_FRAME_LEN: u64 = vireo_delta::limits::MAX_FRAME_LEN;

/// Where a frame is in a stored bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The bundle.
    pub bundle: Digest,
    /// The frame's first byte in the bundle's file.
    pub offset: u64,
    /// The frame's length in bytes.
    pub len: u64,
}

impl Store {
    /// Where a stored bundle is, or is to be put.
    #[must_use]
    pub fn bundle_path(&self, bundle: Digest) -> PathBuf {
        self.root.join("bundles").join(format!("{bundle}.vireo"))
    }

    /// Maps a stored bundle.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such bundle; `Io`.
    pub fn map_bundle(&self, bundle: Digest) -> Result<Mapped, StoreError> {
        let path = self.bundle_path(bundle);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Detail::NoBundle { bundle }.into());
            }
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        map_sealed(&file).map_err(io_error("map", &path))
    }

    /// Which of these frames of a bundle have neither arrived nor are in a stored bundle; in the
    /// order given.
    ///
    /// Cost: one `stat` per frame; the first call reads the head of every stored bundle.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn missing_frames(
        &self,
        bundle: Digest,
        frames: &[Digest],
    ) -> Result<Vec<Digest>, StoreError> {
        if self.bundle_path(bundle).exists() {
            return Ok(Vec::new());
        }
        let mut missing = frames.to_vec();
        self.with_stored_frames(|stored| missing.retain(|frame| !stored.contains_key(frame)))?;
        let directory = self.incoming_dir(bundle);
        missing.retain(|frame| !directory.join(frame.to_string()).exists());
        Ok(missing)
    }

    /// Keeps a frame of a bundle that is being pushed.
    ///
    /// A crash leaves nothing that is taken for the frame; after a power cut its content is checked
    /// again before it is used.
    ///
    /// # Errors
    ///
    /// `Refused` if `content` does not have the digest `frame`; `NoSpace`, `Io`.
    pub fn put_frame(
        &self,
        bundle: Digest,
        frame: Digest,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let found = Digest::of(content);
        if found != frame {
            return Err(Detail::FrameDigest { frame, found }.into());
        }
        let directory = self.incoming_dir(bundle);
        self.make_dir(&directory)?;
        let path = directory.join(frame.to_string());
        self.writes.spool(&path, content).map_err(io_error("write", &path))
    }

    /// Puts a bundle together from its verified head, given as bytes and as read, and its frames.
    /// Nothing is done if it is stored already.
    ///
    /// A crash leaves the frames, and a part that no one takes for the bundle, or the bundle; a
    /// bundle that no version names is found again by the next push.
    ///
    /// # Errors
    ///
    /// `Incomplete` if frames are missing or were damaged (these are dropped: send them again);
    /// `Refused` if lengths disagree; `NoSpace`, `Io`.
    pub fn assemble(&self, head_bytes: &[u8], head: &Head) -> Result<(), StoreError> {
        let path = self.bundle_path(head.digest);
        // One bundle can be pushed to two images at once.
        let _turn = locked(&self.assembling);
        if path.exists() {
            return Ok(());
        }
        let claimed = head.file_len;
        let found = head.head_len + head.frames.iter().map(|frame| frame.len).sum::<u64>();
        if found != claimed || head_bytes.len() as u64 != head.head_len {
            return Err(Detail::BundleLen { bundle: head.digest, claimed, found }.into());
        }
        let wanted: Vec<Digest> = head.frames.iter().map(|frame| frame.digest).collect();
        self.require(head.digest, &self.missing_frames(head.digest, &wanted)?)?;

        let part = self.root.join("bundles").join(format!("{}.part", head.digest));
        let mut damaged = None;
        let written = self.writes.write(&part, &mut |out| {
            out.write_all(head_bytes)?;
            for frame in &head.frames {
                match self.read_frame(head.digest, frame.digest, frame.len) {
                    Ok(content) => out.write_all(&content)?,
                    Err(error) => {
                        damaged = Some((frame.digest, error));
                        return Err(io::Error::other("a frame cannot be used"));
                    }
                }
            }
            out.flush()
        });
        if let Some((frame, error)) = damaged {
            return Err(self.drop_frame(head.digest, frame, error));
        }
        written.map_err(io_error("write", &part))?;
        self.writes.rename(&part, &path).map_err(io_error("finish", &path))?;
        self.add_to_index(head);
        Ok(())
    }

    /// Forgets the frames of a bundle that is stored, or is never to be.
    ///
    /// A crash leaves some of them, for the next sweep.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn drop_incoming(&self, bundle: Digest) -> Result<(), StoreError> {
        let directory = self.incoming_dir(bundle);
        self.writes.remove(&directory).map_err(io_error("remove", &directory))
    }

    fn require(&self, bundle: Digest, missing: &[Digest]) -> Result<(), StoreError> {
        match missing.first() {
            None => Ok(()),
            Some(&first) => {
                Err(Detail::FramesMissing { bundle, count: missing.len(), first }.into())
            }
        }
    }

    /// A frame that cannot be read, or is not what it should be, is dropped, so that the next
    /// question about missing frames names it.
    fn drop_frame(&self, bundle: Digest, frame: Digest, error: StoreError) -> StoreError {
        *locked(&self.frames) = None;
        let path = self.incoming_dir(bundle).join(frame.to_string());
        if self.writes.remove(&path).is_err() {
            return error;
        }
        Detail::FramesMissing { bundle, count: 1, first: frame }.into()
    }

    fn read_frame(&self, bundle: Digest, frame: Digest, len: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.incoming_dir(bundle).join(frame.to_string());
        let content = match read_bounded(&path, MAX_FRAME_LEN)? {
            Some(content) => content,
            None => self.read_stored_frame(bundle, frame)?,
        };
        let found = Digest::of(&content);
        if found == frame && content.len() as u64 == len {
            return Ok(content);
        }
        Err(Detail::FrameDigest { frame, found }.into())
    }

    fn read_stored_frame(&self, bundle: Digest, frame: Digest) -> Result<Vec<u8>, StoreError> {
        use std::os::unix::fs::FileExt as _;
        let missing = Detail::FramesMissing { bundle, count: 1, first: frame };
        let Some(at) = self.with_stored_frames(|stored| stored.get(&frame).copied())? else {
            return Err(missing.into());
        };
        let path = self.bundle_path(at.bundle);
        let len = usize::try_from(at.len.min(MAX_FRAME_LEN)).unwrap_or(0);
        let mut content = vec![0; len];
        let file = File::open(&path).map_err(io_error("open", &path))?;
        file.read_exact_at(&mut content, at.offset).map_err(io_error("read", &path))?;
        Ok(content)
    }

    /// Looks something up among the frames of all stored bundles. They are kept in memory, about
    /// 100 bytes each.
    fn with_stored_frames<R>(
        &self,
        look: impl FnOnce(&HashMap<Digest, Location>) -> R,
    ) -> Result<R, StoreError> {
        let mut index = locked(&self.frames);
        if let Some(frames) = &*index {
            return Ok(look(frames));
        }
        let mut frames = HashMap::new();
        for bundle in self.bundles()? {
            // A bundle that cannot be read is fsck's business; its frames are sent again.
            if let Ok(head) = self.read_head(bundle) {
                frames.extend(locations(&head));
            }
        }
        Ok(look(index.insert(frames)))
    }

    fn add_to_index(&self, head: &Head) {
        if let Some(frames) = &mut *locked(&self.frames) {
            frames.extend(locations(head));
        }
    }

    /// The head of a stored bundle. Its signature is checked, whoever the signer is: that decision
    /// was taken when it was pushed.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such bundle; `Corrupt`; `Io`.
    pub fn read_head(&self, bundle: Digest) -> Result<Head, StoreError> {
        let map = self.map_bundle(bundle)?;
        let damaged = |source| Detail::Bundle { path: self.bundle_path(bundle), source };
        let signer = Bundle::open(&map).map_err(damaged)?.signer();
        let trusted: TrustedKeys = [signer].into_iter().collect();
        let head = Head::read(&map, &trusted).map_err(damaged)?;
        if head.digest != bundle {
            let what = format!("it is the bundle {}", head.digest);
            return Err(Detail::Contradiction { path: self.bundle_path(bundle), what }.into());
        }
        Ok(head)
    }

    /// Names of all stored bundles.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn bundles(&self) -> Result<Vec<Digest>, StoreError> {
        let names = names_in(&self.root.join("bundles"))?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(".vireo")?.parse().ok()).collect())
    }

    pub(crate) fn incoming_dir(&self, bundle: Digest) -> PathBuf {
        self.root.join("incoming").join(bundle.to_string())
    }

    /// Length of a stored bundle's file.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such bundle; `Io`.
    pub fn bundle_len(&self, bundle: Digest) -> Result<u64, StoreError> {
        match fs::metadata(self.bundle_path(bundle)) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Detail::NoBundle { bundle }.into())
            }
            Err(error) => Err(io_error("read", &self.bundle_path(bundle))(error)),
        }
    }
}

fn locations(head: &Head) -> Vec<(Digest, Location)> {
    let mut offset = head.head_len;
    let mut locations = Vec::with_capacity(head.frames.len());
    for frame in &head.frames {
        locations.push((frame.digest, Location { bundle: head.digest, offset, len: frame.len }));
        offset += frame.len;
    }
    locations
}
