//! What either side accepts at most. Checked before anything is allocated.

use std::time::Duration;

/// Longest JSON message that a server reads, in bytes.
pub const MAX_JSON_LEN: usize = 1 << 20;

/// Longest report of what an update did, in bytes. Whoever reports shortens what would be longer:
/// many are kept of every instance, and a server reads no more.
pub const MAX_RECEIPT_LEN: usize = MAX_JSON_LEN;

/// Longest JSON reply that a client reads, in bytes: the log of an image with 200,000 versions.
pub const MAX_REPLY_LEN: usize = 64 << 20;

/// Longest head of a bundle, in bytes; the bundle format's own limits.
pub const MAX_HEAD_LEN: usize =
    vireo_delta::HEADER_LEN + vireo_delta::limits::MAX_MANIFEST_LEN as usize;

/// Longest frame of a bundle, in compressed bytes; the bundle format's own limit.
pub const MAX_FRAME_LEN: usize = vireo_delta::limits::MAX_FRAME_LEN as usize;

/// Most frames that one question about missing frames names: about half of [`MAX_JSON_LEN`].
pub const MAX_FRAMES_ASKED: usize = 8192;

/// Longest raw disk image, in bytes, holes included.
pub const MAX_IMAGE_LEN: u64 = 1 << 40;

/// Longest tree listing, in bytes: about two million nodes.
pub const MAX_TREE_TEXT_LEN: usize = 512 << 20;

/// Longest `vireo-options` header, in bytes; room for a few hundred ignore patterns.
pub const MAX_OPTIONS_LEN: usize = 64 << 10;

/// Longest name that an instance may give itself, in bytes; the kernel's limit for host names.
pub const MAX_INSTANCE_NAME_LEN: usize = 64;

/// Longest name that a cloud may give a machine, in bytes.
pub const MAX_CLOUD_ID_LEN: usize = 64;

/// Longest time that a server keeps a question for the next version open.
pub const WAIT_MAX: Duration = Duration::from_secs(300);

/// How long opening a connection may take, name look-up and TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a short question may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one frame may take: 8 MiB over half a megabit per second.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(150);

/// How long a server may work before it answers: it copies, patches and checks a whole image.
pub const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long an upload of a whole image may take.
pub const UPLOAD_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// How long a download may stand still.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);
